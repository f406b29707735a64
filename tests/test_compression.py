"""Tables in bytes and half bytes: how near they are, what is refused, and that retrieval takes them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.engine.compression import CompressionError, QuantizedRows, dequantize, quantize
from affinax.engine.factorization import Factors
from affinax.engine.retrieval import recommend, top_k
from affinax.kernels.csr import CSR
from affinax.kernels.embedding import bag, lookup
from affinax.kernels.half_bytes import parts
from affinax.kernels.product_rows import ProductRows
from affinax.kernels.quantized_rows import with_columns

pytestmark = pytest.mark.usefixtures("strict_dtypes")

TABLE = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)
each_way = pytest.mark.parametrize("symmetric", [True, False])
each_clip = pytest.mark.parametrize("clip", ["none", "search"])
each_kind = pytest.mark.parametrize("kind", ["int8", "int4"])


@each_kind
@each_way
@each_clip
def test_rows_come_back_within_half_a_step(kind, symmetric, clip):
    rows = jax.jit(lambda table: quantize(table, kind, symmetric=symmetric, clip=clip))(TABLE)
    found, most = np.asarray(dequantize(rows)), 127 if kind == "int8" else 7
    errors = np.abs(found - TABLE)
    step = np.asarray(rows.scales, np.float32)[:, None]
    if kind == "int4":  # of one block
        step *= np.abs(parts(rows.codes, 9)[1])
    low, high = TABLE.min(axis=1, keepdims=True), TABLE.max(axis=1, keepdims=True)
    whole = (np.abs(TABLE).max(axis=1, keepdims=True) if symmetric else (high - low) / 2) / most
    if clip == "none":
        # There is one half byte more on one side, and scales of theirs are rounded.
        assert (step <= whole * 1.00001).all()
        assert (step >= whole * (0.99999 if kind == "int8" else 0.99 * 7 / 8)).all()
        assert (errors <= 0.5001 * step).all()
    else:
        plain = np.asarray(dequantize(quantize(jnp.asarray(TABLE), kind, symmetric=symmetric)))
        assert ((errors**2).sum(axis=1) <= ((plain - TABLE) ** 2).sum(axis=1) * 1.0001 + 1e-9).all()
        assert kind == "int8" or (errors**2).sum() < 0.97 * ((plain - TABLE) ** 2).sum()
    assert rows.kind == kind
    assert rows.shape == TABLE.shape


def test_sizes_are_those_promised():
    table = jnp.zeros((1000, 64))
    # Of each row 4 bytes are its scale, or 2 and 2 of multipliers.
    for kind, share in (("int8", 68 / 256), ("int4", 36 / 256), ("float8", 68 / 256)):
        assert quantize(table, kind).nbytes == share * table.nbytes


@each_kind
@each_way
def test_constant_rows_and_exact_columns(kind, symmetric):
    table = jnp.array([[0.0, 0.0, 0.0, 7.7], [2.0, 2.0, 2.0, -0.3], [-1.0, 0.0, 1.0, 1e9]])
    rows = quantize(table, kind, symmetric=symmetric, exact=1)
    found = dequantize(rows)
    np.testing.assert_array_equal(found[:, 3], table[:, 3])
    np.testing.assert_allclose(found, table, rtol=1e-6 if kind == "int8" else 2**-7)
    np.testing.assert_array_equal(found[0], table[0])
    assert symmetric or (found[1] == table[1]).all()
    assert rows.width == 3
    some = rows[jnp.array([[2, 0], [1, 1]], jnp.int32)]
    np.testing.assert_array_equal(some, found[jnp.array([[2, 0], [1, 1]])])


def test_one_column_of_half_bytes():
    rows = quantize(jnp.array([[0.5], [-2.0]]), "int4")
    assert rows.codes.shape == (2, 2)
    np.testing.assert_allclose(dequantize(rows), [[0.5], [-2.0]], rtol=2**-7)


@each_way
@each_clip
def test_blocks_of_half_bytes_have_their_own_steps(symmetric, clip):
    rng, names = np.random.default_rng(3), {"symmetric": symmetric, "clip": clip}
    table = rng.normal(size=(50, 40)) * np.repeat(rng.uniform(0.2, 1, (50, 3)), 16, axis=1)[:, :40]
    rows = quantize(jnp.asarray(table, jnp.float32), "int4", **names)
    own, multipliers = parts(rows.codes, 40)
    steps = np.abs(multipliers) * np.asarray(rows.scales, np.float32)[:, None]
    each = np.repeat(steps, 16, axis=1)[:, :40]
    assert (np.asarray(own).min(), len(np.unique(multipliers)) > 4) == (-8, True)
    assert steps.min() > 0
    if clip == "none":
        assert (np.abs(np.asarray(rows.floats()) - table) <= 0.5001 * each).all()
    # Against blocks that are rows of their own; one step for all of a row errs twice as much as these.
    alone = [quantize(jnp.asarray(table[:, start : start + 16], jnp.float32), "int4", **names) for start in (0, 16, 32)]
    errors = [np.sum((np.asarray(a) - table) ** 2) for a in (rows.floats(), np.hstack([a.floats() for a in alone]))]
    assert errors[0] < (1.15 if symmetric else 1.4) * errors[1]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3.4e38])
@each_way
@each_clip
def test_half_bytes_of_any_size(scale, symmetric, clip):
    table = jnp.array([[1.0, -1.0, 0.25], [1.0, -0.3, 0.0], [0.1, 0.9, 1.0]], jnp.float32) * scale
    found = np.asarray(quantize(table, "int4", symmetric=symmetric, clip=clip).floats(), float)
    assert (np.abs(found - np.asarray(table, float)) <= 0.08 * scale).all()


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        (np.zeros((0, 3), np.float32), {}, CompressionError, r"a table of shape \[0, 3\] has no rows of numbers"),
        (np.zeros(3, np.float32), {}, CompressionError, r"shape \[3\] has no rows"),
        (np.array([[1.0, np.inf]], np.float32), {}, CompressionError, "row 0, column 1 is inf"),
        (np.array([[1.0], [np.nan]], np.float32), {}, CompressionError, "row 1, column 0 is nan"),
        (TABLE, {"exact": 9}, CompressionError, "exact=9 must be a whole number below the 9 columns"),
        (TABLE, {"exact": -1}, CompressionError, "exact=-1 must be a whole number below"),
        (quantize(jnp.asarray(TABLE)), {}, CompressionError, "int8 already; dequantize them first"),
        (TABLE, {"kind": "int3"}, ValueError, "kind='int3' must be one of"),
        (TABLE, {"clip": "half"}, ValueError, "clip='half' must be one of"),
    ],
)
def test_what_cannot_be_quantized(table, options, error, message):
    with pytest.raises(error, match=message):
        quantize(table, **options)
    with pytest.raises(CompressionError, match="ndarray has nothing quantized"):
        dequantize(TABLE)


@pytest.mark.parametrize(("kind", "error"), [("float8", 2**-4), ("bfloat16", 2**-8)])
def test_floats_of_fewer_bits(kind, error):
    rows = quantize(jnp.asarray(TABLE), kind, exact=1)
    found = np.asarray(dequantize(rows))
    np.testing.assert_array_equal(found[:, -1], TABLE[:, -1])
    least = np.asarray(rows.scales)[:, None] * 2.0**-9 * (kind == "float8")  # the step of codes next to 0
    assert (np.abs(found - TABLE) <= np.maximum(error * np.abs(TABLE), least)).all()
    assert np.abs(found - TABLE).max() > 0
    ids, scores = top_k(jnp.asarray(TABLE[:3]), rows, 4)
    expected, same = top_k(jnp.asarray(TABLE[:3]), jnp.asarray(found), 4)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(scores, same)


def test_rows_are_gone_through_one_by_one():
    products = ProductRows(jnp.array([[0], [1], [0]], jnp.uint8), jnp.ones((1, 2, 4)), jnp.zeros((3, 0)))
    for rows in (quantize(jnp.ones((3, 4))), products):
        np.testing.assert_allclose(list(rows), np.ones((3, 4)))
        np.testing.assert_allclose(rows[[1, 2]], np.ones((2, 4)))
        np.testing.assert_allclose(rows[-1], np.ones(4))
        with pytest.raises(IndexError, match="row 3 of 3"):
            rows[3]
        for wrong in ((1, 2), np.array([True, False, True]), 0.5):
            with pytest.raises(TypeError, match="rows are chosen by ids, a slice or"):
                rows[wrong]


def test_rows_are_indexed_as_an_array_is():
    rows = quantize(jnp.asarray(TABLE), "int4", symmetric=False, exact=2)
    assert rows[...] is rows
    np.testing.assert_array_equal(rows[10:20].floats(), rows.floats()[10:20])
    more = with_columns(rows, jnp.arange(40.0))
    assert (more.shape, more.width) == ((40, 10), 7)
    np.testing.assert_array_equal(more.floats()[:, -1], np.arange(40))
    found = lookup(rows, jnp.array([[3, -1, 40]]))
    np.testing.assert_array_equal(found[0, 0], rows.floats()[3])
    np.testing.assert_array_equal(found[0, 1], np.zeros(9))
    assert np.isnan(found[0, 2]).all()
    bags = CSR(jnp.array([0, 2, 2], jnp.int32), jnp.array([3, 39], jnp.int32), jnp.ones(1))
    np.testing.assert_allclose(bag(rows, bags)[0], rows.floats()[3] + rows.floats()[39], rtol=1e-6)


@each_kind
def test_retrieval_takes_quantized_rows(kind):
    model = Factors(jnp.asarray(TABLE[:5]), jnp.asarray(TABLE), item_bias=jnp.linspace(0, 1, 40))
    queries, items = model.queries(jnp.arange(5, dtype=jnp.int32)), model.item_table()
    rows = quantize(items, kind, exact=1)
    assert isinstance(rows, QuantizedRows)
    expected, _ = recommend(model, np.arange(5), k=10)
    found, scores = top_k(queries, rows, 10)
    same = np.mean([len({*one} & {*other}) for one, other in zip(found.tolist(), expected.tolist(), strict=True)])
    assert same >= (9.5 if kind == "int8" else 8)
    products = np.einsum("bw,bkw->bk", queries, np.asarray(dequantize(rows))[np.asarray(found)])
    np.testing.assert_allclose(scores, products, atol=0.05)
    # Among a few of each: their rows alone.
    among = np.array([[3, 1, -1], [0, 7, 39], [5, 5, 6], [1, 2, 3], [8, 9, 10]], np.int32)
    chosen, _ = top_k(queries, rows, 2, allow=among)
    plain, _ = top_k(queries, dequantize(rows), 2, allow=among)
    np.testing.assert_array_equal(chosen, plain)
