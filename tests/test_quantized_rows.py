"""Products of bytes, and the search in tables of bytes and half bytes: exact in int32, on every implementation."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from affinax.kernels import int8, int8_tiles, quantized_rows
from affinax.kernels.csr import CSR
from affinax.kernels.half_bytes import BLOCK, packed, parts, unpacked
from affinax.kernels.op import platforms
from affinax.kernels.quantized_rows import QuantizedRows, search, to_bytes

from .lowering import gpu_interpreter, lowered
from .test_kernels import close, devices

pytestmark = pytest.mark.usefixtures("strict_dtypes")

vnni = pytest.mark.skipif(not int8_tiles.available(), reason="this CPU multiplies no bytes (AVX-512 VNNI)")
each_implementation = pytest.mark.parametrize("implementation", ["reference", pytest.param("numba", marks=vnni)])
SHAPES = [(1, 1, 1), (3, 5, 7), (8, 32, 64), (70, 100, 130), (33, 513, 100)]


def codes(rng, shape, bits=8):
    least, most = (-127, 127) if bits == 8 else (-8, 7)
    return rng.integers(least, most + 1, shape).astype(np.int8)


@pytest.mark.parametrize("implementation", ["reference", pytest.param("numba", marks=vnni), "interpret"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_exact(shape, implementation):
    a, b = extremes(shape)
    found = jax.jit(lambda a, b: int8.product(a, b, implementation=implementation))(a, b)
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.astype(np.int64).T)
    both = jax.vmap(lambda a: int8.product(a, jnp.asarray(b), implementation=implementation))(jnp.stack([a, a]))
    np.testing.assert_array_equal(both[1], found)


def extremes(shape):
    (m, n, depth), rng = shape, np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (rows, depth)).astype(np.int8) for rows in (m, n))
    a[0], b[0] = -128, -128
    return a, b


@pytest.mark.parametrize("shape", SHAPES)
def test_products_on_a_gpu_are_exact(shape):
    """Interpreted, where there is none."""
    from affinax.kernels import int8_gpu

    how = {} if "cuda" in platforms() else {"interpret": gpu_interpreter()}
    a, b = extremes(shape)
    found = int8_gpu.multiply(jnp.asarray(a), jnp.asarray(b), **how)
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.astype(np.int64).T)


@pytest.mark.parametrize(("platform", "call"), [("tpu", "tpu_custom_call"), ("cuda", "mosaic_gpu_v2")])
def test_products_lower_for_accelerators(platform, call):
    from affinax.kernels import int8_gpu, int8_tpu

    multiply = {"tpu": int8_tpu, "cuda": int8_gpu}[platform].multiply
    assert call in lowered(multiply, platform, *map(jnp.asarray, extremes((70, 100, 130))))


def test_products_under_shard_map():
    rng, mesh = np.random.default_rng(0), devices()
    a, b = jnp.asarray(codes(rng, (16, 20))), jnp.asarray(codes(rng, (9, 20)))
    shared = jax.shard_map(int8.product, mesh=mesh, in_specs=(P("rows"), P()), out_specs=P("rows"), check_vma=False)
    np.testing.assert_array_equal(jax.jit(shared)(a, b), int8.product(a, b))


def test_products_that_cannot_be():
    a = jnp.zeros((2, 3), jnp.int8)
    for one, other, message in [
        (a, jnp.zeros((2, 4), jnp.int8), "depths 3 and 4 must be equal"),
        (jnp.zeros((1, 70_000), jnp.int8), jnp.zeros((1, 70_000), jnp.int8), "65,535 at most"),
    ]:
        with pytest.raises(ValueError, match=message):
            int8.product(one, other)
    assert int8.product(jnp.zeros((0, 3), jnp.int8), a).shape == (0, 2)


def table(rng, n, width, columns, bits, offset):
    """Quantized rows, and what they stand for, float64."""
    scales = rng.uniform(0.1, 1, n).astype(np.float32)
    offsets = rng.normal(size=n).astype(np.float32) if offset else None
    exact, own = rng.normal(size=(n, columns)).astype(np.float32), codes(rng, (n, width), bits)
    scales, stored = jnp.asarray(scales), jnp.asarray(own)
    if bits == 4:
        multipliers = codes(rng, (n, -(-width // BLOCK)), 4)
        scales, stored = scales.astype(jnp.bfloat16), packed(stored, jnp.asarray(multipliers))
        own = own * np.repeat(multipliers, BLOCK, axis=1)[:, :width]
    rows = own * np.asarray(scales, np.float64)[:, None] + (0 if offsets is None else offsets[:, None])
    given = scales, None if offsets is None else jnp.asarray(offsets), jnp.asarray(exact)
    return QuantizedRows(stored, *given, width), np.concatenate([rows, exact], axis=1)


@each_implementation
@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        *[(batch, shape) for batch in (1, 37) for shape in [(1, 1, 0), (9, 1, 1), (70, 64, 0), (4100, 130, 2)]],
        *[(7, (5, 3, 1)), (8, (40, 1, 0)), (7, (70, 64, 0)), (8, (4100, 130, 2))],  # few queries and many
    ],
)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("offset", [False, True])
def test_the_best_rows_are_found(batch, shape, bits, offset, implementation):
    (n, width, columns), rng, k = shape, np.random.default_rng(1), 20
    items, rows = table(rng, n, width, columns, bits, offset)
    queries = rng.normal(size=(batch, width + columns)).astype(np.float32)
    exclude = rng.integers(-1, n, (batch, 2)).astype(np.int32)
    seen = np.sort(rng.integers(0, n, (batch, 3)).astype(np.int32), axis=1)
    allow = rng.random(n) < 0.9
    given = {
        "seen": CSR(jnp.arange(0, 3 * batch + 1, 3, dtype=jnp.int32), jnp.asarray(seen.reshape(-1)), jnp.ones(1)),
        "seen_rows": jnp.arange(batch, dtype=jnp.int32),
        "exclude": jnp.asarray(exclude),
        "allow": jnp.asarray(allow),
    }
    find = jax.jit(lambda q, items, given: search(q, items, k, implementation=implementation, **given))
    ids, scores = (np.asarray(a) for a in find(queries, items, given))
    own, scale = to_bytes(jnp.asarray(queries[:, :width]))
    quantized = np.asarray(own, np.float64) * np.asarray(scale, np.float64)[:, None]
    expected = np.concatenate([quantized, queries[:, width:]], axis=1) @ rows.T
    for row in range(batch):
        expected[row, ~allow] = -np.inf
        expected[row, seen[row]] = -np.inf
        expected[row, exclude[row][exclude[row] >= 0]] = -np.inf
        best = np.sort(expected[row])[::-1][:k]
        best = best[np.isfinite(best)]
        assert (ids[row, len(best) :] == -1).all()
        close(scores[row, : len(best)], best, 1e-5)
        close(expected[row, ids[row, : len(best)]], best, 1e-5)


@each_implementation
@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_those_of_the_numbers(bits, implementation):
    rng = np.random.default_rng(2)
    items, rows = table(rng, 40, 16, 1, bits, True)
    queries, slopes = (rng.normal(size=(3, n)).astype(np.float32) for n in (17, 5))
    find = functools.partial(search, items=items, k=5, implementation=implementation)
    ids = np.asarray(find(queries)[0])
    found = jax.jit(jax.grad(lambda q: jnp.sum(find(q)[1] * slopes)))(queries)
    np.testing.assert_allclose(found, np.einsum("bk,bkw->bw", slopes, rows[ids]), rtol=1e-4, atol=1e-5)
    allowed = jax.grad(lambda q: jnp.sum(find(q, allow=jnp.zeros(40, bool))[1]))(queries)
    assert (np.asarray(allowed) == 0).all()


def operands(rng, batch, shape, bits, offset):
    """Of the operation, with many scores that are equal and some items left out."""
    n, width, columns = shape
    items, _ = table(rng, n, width, columns, bits, offset)
    few = rng.choice([-1, 0, 1] if bits == 8 else [0x88, 0x98, 0x87], items.codes.shape)
    if bits == 4:  # multipliers of 1 and -1
        split = (width + 1) // 2
        few[:, split:] = rng.choice([0x99, 0x79, 0x97], few[:, split:].shape)
    items = replace(
        items, codes=jnp.asarray(few.astype(items.codes.dtype)), scales=jnp.ones(n), exact=jnp.ones((n, columns))
    )
    own, scales = jnp.asarray(codes(rng, (batch, width), 4)), jnp.ones(batch)
    offsets = jnp.zeros(0) if items.offsets is None else jnp.ones(n)
    seen = jnp.asarray(np.sort(rng.integers(0, n, 3 * batch)).astype(np.int32))
    rows = jnp.arange(0, 3 * batch + 1, 3, dtype=jnp.int32), seen, jnp.arange(batch, dtype=jnp.int32)
    masks = *rows, jnp.asarray(rng.integers(-1, n, (batch, 2)), jnp.int32), jnp.asarray(rng.random(n) < 0.9)
    return own, scales, jnp.ones((batch, columns)), items.codes, items.scales, offsets, items.exact, *masks


def program(platform):
    """The search of an accelerator, interpreted where there is none."""
    from affinax.kernels import quantized_rows_gpu, quantized_rows_tpu

    if platform == "tpu":
        return functools.partial(quantized_rows_tpu.search_rows, interpret="tpu" not in platforms())
    how = {} if "cuda" in platforms() else {"interpret": gpu_interpreter()}
    return functools.partial(quantized_rows_gpu.search_rows, **how)


@pytest.mark.parametrize(
    ("platform", "batch", "shape", "bits", "offset", "k"),
    [
        ("tpu", 1, (1, 1, 0), 8, False, 1),
        ("tpu", 7, (5, 3, 1), 4, True, 20),
        ("tpu", 37, (2100, 66, 2), 8, True, 20),
        ("tpu", 150, (1100, 33, 0), 4, False, 130),
        ("cuda", 1, (1, 1, 0), 8, False, 1),
        ("cuda", 7, (70, 40, 1), 4, True, 20),
        ("cuda", 70, (300, 130, 2), 8, True, 33),
    ],
)
def test_accelerators_find_the_same(platform, batch, shape, bits, offset, k):
    given = operands(np.random.default_rng(2), batch, shape, bits, offset)
    ids, scores = jax.jit(functools.partial(program(platform), k=k))(*given)
    expected, best = quantized_rows.OP.reference(*given, k=k)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(scores, best)


def test_accelerators_search_under_transformations():
    given = operands(np.random.default_rng(3), 16, (300, 20, 1), 8, True)
    find = functools.partial(program("tpu"), k=5)
    expected, _ = find(*given)
    own, *others = given
    both, _ = jax.jit(jax.vmap(lambda own: find(own, *others)))(jnp.stack([own, own]))
    np.testing.assert_array_equal(both[1], expected)
    # Queries are shared out, each with the row of what it has seen and of what it excludes.
    spread = [P("rows")] * 3 + [P()] * 6 + [P("rows"), P("rows"), P()]
    shared = jax.shard_map(find, mesh=devices(), in_specs=tuple(spread), out_specs=P("rows"), check_vma=False)
    np.testing.assert_array_equal(jax.jit(shared)(*given)[0], expected)


@pytest.mark.parametrize(("platform", "call"), [("tpu", "tpu_custom_call"), ("cuda", "mosaic_gpu")])
@pytest.mark.parametrize("bits", [8, 4])
def test_searches_lower_for_accelerators(platform, call, bits):
    from affinax.kernels import quantized_rows_gpu, quantized_rows_tpu

    search_rows = {"tpu": quantized_rows_tpu, "cuda": quantized_rows_gpu}[platform].search_rows
    given = operands(np.random.default_rng(4), 70, (3000, 65, 1), bits, True)
    assert call in lowered(functools.partial(search_rows, k=20), platform, *given)


def test_what_accelerators_do_not_search():
    items, _ = table(np.random.default_rng(0), 6, 5, 9, 8, False)
    for k, message in ((1, "9 exact columns are more than 8"), (2000, "k=2000 is more than the 1024 answers")):
        queries = jnp.zeros((1, 5 + (9 if k == 1 else 0)))
        asked = items if k == 1 else replace(items, exact=jnp.zeros((6, 0)))
        with pytest.raises(NotImplementedError, match=message):
            search(queries, asked, k, implementation="interpret")


def test_codes_pack_and_unpack():
    rng = np.random.default_rng(0)
    for width, size in ((1, 2), (2, 2), (5, 4), (33, 19), (64, 34)):
        own, multipliers = (jnp.asarray(codes(rng, (6, n), bits=4)) for n in (width, -(-width // BLOCK)))
        stored = packed(own, multipliers)
        assert stored.shape == (6, size)
        for found, given in zip(parts(stored, width), (own, multipliers), strict=True):
            np.testing.assert_array_equal(found, given)
        whole = np.asarray(own, int) * np.repeat(np.asarray(multipliers, int), BLOCK, axis=1)[:, :width]
        np.testing.assert_array_equal(unpacked(stored, width), whole)
    items, _ = table(rng, 6, 5, 1, 4, True)
    assert (items.kind, items.shape, items.nbytes) == ("int4", (6, 6), 6 * (3 + 1 + 2) + 2 * 6 * 4)
    whole, _ = table(rng, 6, 5, 0, 8, False)
    assert (whole.kind, whole.nbytes) == ("int8", 6 * 5 + 6 * 4)


def test_searches_that_cannot_be():
    items, _ = table(np.random.default_rng(0), 6, 5, 0, 8, False)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        search(jnp.zeros((1, 5)), items, 0)
    with pytest.raises(ValueError, match="queries have width 4, items 5"):
        search(jnp.zeros((1, 4)), items, 1)
    ids, scores = search(jnp.zeros((2, 5)), items, 3)  # of nothing
    assert ids.tolist() == [[0, 1, 2]] * 2
    assert (scores == 0).all()
