"""Embedding tables: both implementations against float64 oracles, and the optimizers against optax, row by row."""

from __future__ import annotations

import functools
from inspect import unwrap  # what a user has, without the type checker of the tests

import jax
import jax.numpy as jnp
import numba
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from affinax.kernels import embedding, huge_pages
from affinax.kernels.csr import CSR

from . import naive
from .cases import EMBEDDINGS, embedding_arguments
from .test_kernels import close, devices, each_implementation

pytestmark = pytest.mark.usefixtures("strict_dtypes")

each_case = pytest.mark.parametrize("case", EMBEDDINGS, ids=lambda case: case.name)
each_optimizer = pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
RULES = {"sgd": optax.sgd, "adagrad": optax.adagrad, "adam": optax.adam}


def bags_of(arrays):
    return CSR(*(jnp.asarray(arrays[name]) for name in ("indptr", "indices", "values")))


def slope(exact, direction):
    """Of a function of float64 numbers, in one direction."""
    return (exact(1e-5 * direction) - exact(-1e-5 * direction)) / 2e-5


@each_implementation
@each_case
def test_lookup_is_exact(case, implementation):
    arrays = embedding_arguments(case)
    ids = np.append(arrays["indices"], case.n_rows)  # one beyond
    table = jnp.asarray(arrays["table"])
    found = functools.partial(embedding.lookup, implementation=implementation)
    padded = np.concatenate([arrays["table"], np.full((1, case.width), np.nan), np.zeros((1, case.width))])
    expected = padded[ids]  # -1 is the last row, of zeros
    rows = jax.jit(found)(table, jnp.asarray(ids)[None])
    np.testing.assert_array_equal(rows[0], expected)
    mix = np.random.default_rng(1).normal(size=rows.shape).astype(np.float32)
    gradient = jax.jit(lambda t, i, m: jax.vjp(lambda t: found(t, i), t)[1](m)[0])(table, jnp.asarray(ids)[None], mix)
    dense = np.zeros(table.shape)
    inside = (ids >= 0) & (ids < case.n_rows)
    np.add.at(dense, ids[inside], mix[0][inside].astype(np.float64))
    close(gradient, dense, 1e-5)


@each_implementation
@each_case
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_and_its_gradients_are_exact(case, mode, implementation):
    arrays = embedding_arguments(case)
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(len(case.lengths), case.width))

    def scalar(table, values):
        bags = bags_of(arrays)._replace(values=values)
        pooled = embedding.bag(table, bags, mode=mode, implementation=implementation)
        return jnp.sum(pooled * mix.astype(np.float32)), pooled

    given = jnp.asarray(arrays["table"]), jnp.asarray(arrays["values"])
    gradients, pooled = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(*given)
    close(pooled, naive.bag(**arrays, mode=mode), 1e-5)
    for name, gradient in zip(("table", "values"), gradients, strict=True):
        direction = rng.normal(size=arrays[name].shape)

        def exact(step, name=name):
            return np.sum(mix * naive.bag(**(arrays | {name: arrays[name].astype(np.float64) + step}), mode=mode))

        expected = slope(exact, direction)
        assert np.sum(np.asarray(gradient) * direction) == pytest.approx(expected, rel=1e-3, abs=1e-3), name


@each_implementation
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_what_a_bag_does_with_rows_beyond_the_table(mode, implementation):
    bags = CSR(jnp.array([0, 2, 3, 3, 4], jnp.int32), jnp.array([0, 9, 1, -1], jnp.int32), jnp.ones(1))
    table = jnp.ones((2, 3))
    pooled = embedding.bag(table, bags, mode=mode, implementation=implementation)
    np.testing.assert_array_equal(pooled[:, 0], [np.nan, 1, 0, 0])
    gradient = jax.grad(lambda t: jnp.sum(embedding.bag(t, bags, implementation=implementation)[1:]))(table)
    np.testing.assert_array_equal(gradient, [[0] * 3, [1] * 3])


def test_bfloat16_tables():
    arrays = embedding_arguments(EMBEDDINGS[2])
    table = jnp.asarray(arrays["table"], jnp.bfloat16)
    bags = bags_of(arrays)
    rows = embedding.lookup(table, bags.indices)
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows[0], table[bags.indices[0]])
    exact = naive.bag(**(arrays | {"table": np.asarray(table, np.float32)}), mode="mean")
    close(embedding.bag(table, bags, mode="mean"), exact, 1e-2)
    assert jax.grad(lambda t: jnp.sum(embedding.bag(t, bags).astype(jnp.float32)))(table).dtype == jnp.bfloat16
    with pytest.raises(NotImplementedError, match="must all be float32"):
        embedding.lookup(table, bags.indices, implementation="numba")


@each_implementation
def test_reading_under_transformations(implementation):
    arrays = embedding_arguments(EMBEDDINGS[2])
    table, bags = jnp.asarray(arrays["table"]), bags_of(arrays)
    ids = jnp.asarray(np.random.default_rng(2).integers(-1, 13, 12), jnp.int32)

    def read(table, values, ids):
        pooled = embedding.bag(table, bags._replace(values=values), mode="mean", implementation=implementation)
        return pooled, embedding.lookup(table, ids, implementation=implementation)

    def squares(*given):
        return sum(jnp.sum(found**2) for found in read(*given))

    both = jax.jit(lambda *given: (read(*given), jax.grad(squares, (0, 1))(*given)))
    expected = both(table, bags.values, ids)
    tables = jnp.stack([2 * table, table])
    mapped = jax.jit(jax.vmap(lambda t: both(t, bags.values, ids)))(tables)
    scanned = jax.jit(lambda tables: lax.scan(lambda _, t: (None, both(t, bags.values, ids)), None, tables)[1])(tables)
    for one, other in ((mapped, expected), (scanned, expected)):
        jax.tree.map(lambda a, b: close(a[1], np.asarray(b), 1e-6), one, other)
    sharded = jax.shard_map(
        lambda t, v, i: read(t, v, i)[1],
        mesh=devices(),
        in_specs=(P(), P(), P("rows")),
        out_specs=P("rows"),
        check_vma=False,
    )
    np.testing.assert_array_equal(jax.jit(sharded)(table, bags.values, ids), expected[0][1])


def steps_of(case, n_steps=3):
    """Ids, some outside the table and some many times, and a gradient for each."""
    rng = np.random.default_rng(3)
    ids = rng.integers(-1, case.n_rows + 2, (n_steps, 40)).astype(np.int32)
    ids[:, :15] = rng.integers(0, case.n_rows)
    return ids, rng.normal(size=(n_steps, 40, case.width)).astype(np.float32)


@each_implementation
@each_optimizer
@each_case
def test_every_row_has_an_optimizer_of_its_own(case, optimizer, implementation):
    ids, gradients = steps_of(case)
    table = jnp.asarray(embedding_arguments(case)["table"])
    slots = embedding.start_slots(table, optimizer)
    exact, exact_slots = np.asarray(table, np.float64), [np.asarray(slot, np.float64) for slot in slots]
    rule = {"optimizer": optimizer, "learning_rate": 0.1}

    def step(state, batch):
        return embedding.update_rows(*state, *batch, **rule, implementation=implementation), None

    (found, found_slots), _ = jax.jit(lambda *given: lax.scan(step, *given))((table, slots), (ids, gradients))
    for batch, gradient in zip(ids, gradients, strict=True):
        naive.update_rows(exact, exact_slots, batch, gradient.astype(np.float64), **rule)
    for one, other in zip((found, *found_slots), (exact, *exact_slots), strict=True):
        close(one, other, 1e-5)
    if optimizer == "rowwise_adagrad":
        return
    with jax.numpy_dtype_promotion("standard"):
        transform = RULES[optimizer](0.1)
        for row in np.unique(ids[(ids >= 0) & (ids < case.n_rows)])[:4]:
            expected = table[row]
            state = transform.init(expected)
            for batch, gradient in zip(ids, gradients, strict=True):
                if row in batch:
                    change, state = transform.update(jnp.asarray(gradient[batch == row].sum(0)), state)
                    expected = expected + change
            np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)
            for slot, value in zip(found_slots, jax.tree.leaves(state), strict=True):
                np.testing.assert_allclose(slot[row], value, rtol=1e-4, atol=1e-5)


@each_implementation
@each_optimizer
def test_tables_of_numbers(optimizer, implementation):
    """`[n]` is `[n, 1]`."""
    case = EMBEDDINGS[2]._replace(width=1)
    ids, gradients = steps_of(case, 1)
    found = []
    for shape in ((), (1,)):
        table = jnp.ones((case.n_rows, *shape))
        slots = embedding.start_slots(table, optimizer)
        step = functools.partial(embedding.update_rows, optimizer=optimizer, implementation=implementation)
        found.append(
            step(table, slots, jnp.asarray(ids[0]), jnp.asarray(gradients[0].reshape(40, *shape)), learning_rate=0.1)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.ravel(), b.ravel(), rtol=1e-6), *found)


@each_implementation
@each_case
def test_an_update_by_bags_is_that_of_their_gradient(case, implementation):
    arrays = embedding_arguments(case)
    table, bags = jnp.asarray(arrays["table"]), bags_of(arrays)
    mix = jnp.asarray(np.random.default_rng(4).normal(size=(len(case.lengths), case.width)), jnp.float32)
    rule = {"optimizer": "sgd", "learning_rate": 0.1, "implementation": implementation}
    found, _ = jax.jit(lambda t: embedding.update_rows(t, (), bags, mix, **rule))(table)
    dense = jax.grad(lambda t: jnp.vdot(embedding.bag(t, bags, implementation="reference"), mix))(table)
    close(found, np.asarray(table - 0.1 * dense, np.float64), 1e-5)


@each_implementation
def test_updates_under_transformations(implementation):
    case = EMBEDDINGS[2]
    (ids,), (gradients,) = steps_of(case, 1)
    table = jnp.asarray(embedding_arguments(case)["table"])
    slots = embedding.start_slots(table, "adagrad")

    def moved(ids, rate, table):
        rule = {"optimizer": "adagrad", "learning_rate": rate, "implementation": implementation}
        return embedding.update_rows(table, slots, ids, jnp.asarray(gradients), **rule)[0]

    expected = [np.asarray(moved(jnp.asarray(ids), rate, table)) for rate in (0.1, 0.2)]
    mapped = jax.jit(jax.vmap(moved, in_axes=(None, 0, None)))(jnp.asarray(ids), jnp.array([0.1, 0.2]), table)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-6)
    own = jnp.stack([jnp.where(ids % 4 == device, ids, -1) for device in range(4)])
    sharded = jax.shard_map(
        lambda ids, table: (moved(ids[0], 0.1, table) - table)[None],
        mesh=devices(),
        in_specs=(P("rows"), P()),
        out_specs=P("rows"),
        check_vma=False,
    )
    np.testing.assert_allclose(table + jax.jit(sharded)(own, table).sum(0), expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.on_cpu
@each_optimizer
def test_a_table_given_to_keep_is_changed_in_place(optimizer):
    ids, gradients = steps_of(EMBEDDINGS[3], 1)
    table = jnp.asarray(embedding_arguments(EMBEDDINGS[3])["table"])
    slots = embedding.start_slots(table, optimizer)
    kept = np.array(table)
    update = functools.partial(embedding.update_rows, optimizer=optimizer, implementation="numba")
    step = jax.jit(update, donate_argnums=(0, 1))
    state = jax.tree.map(jnp.copy, (table, slots))
    before = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    lowered = step.lower(*state, jnp.asarray(ids[0]), jnp.asarray(gradients[0]), learning_rate=0.1)
    moved = step(*state, jnp.asarray(ids[0]), jnp.asarray(gradients[0]), learning_rate=0.1)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(moved)] == before
    # Nor is there a copy on the way: what the program needs besides is for the ids.
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 5000
    # Without it, the table stays as it was.
    again = jax.jit(update)(table, slots, jnp.asarray(ids[0]), jnp.asarray(gradients[0]), learning_rate=0.1)
    np.testing.assert_array_equal(table, kept)
    jax.tree.map(np.testing.assert_array_equal, again, moved)


@pytest.mark.on_cpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (3,), (5_000_003,), (70_001, 64)])
def test_a_copy_in_huge_pages_is_a_copy(shape, dtype):
    table = jnp.asarray(np.random.default_rng(1).integers(0, 100, shape), dtype)
    copied = huge_pages.copy(table)
    assert copied.unsafe_buffer_pointer() != table.unsafe_buffer_pointer()
    assert (copied.shape, copied.dtype) == (table.shape, table.dtype)
    assert bool(jnp.all(copied == table))


def test_the_same_bits_on_any_number_of_threads():
    rng = np.random.default_rng(5)
    ids = jnp.asarray((500 * rng.random(50_000) ** 3).astype(np.int32))
    rows = jnp.asarray(rng.normal(size=(50_000, 3)), jnp.float32)
    table = jnp.zeros((500, 3))
    slots = embedding.start_slots(table, "adam")

    def results():
        dense = jax.vjp(lambda t: embedding.lookup(t, ids, implementation="numba"), table)[1](rows)
        return dense, embedding.update_rows(
            table, slots, ids, rows, optimizer="adam", learning_rate=0.1, implementation="numba"
        )

    several = jax.tree.map(np.asarray, jax.jit(results)())
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = results()
    finally:
        numba.set_num_threads(threads)
    jax.tree.map(np.testing.assert_array_equal, several, one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unwrap(embedding.lookup)(jnp.ones(3), jnp.zeros(1, jnp.int32)), r"table of float32\[3\] must be"),
        (lambda: unwrap(embedding.lookup)(jnp.ones((3, 1), jnp.int32), jnp.zeros(1, jnp.int32)), "table of int32"),
        (
            lambda: unwrap(embedding.lookup)(jnp.ones((3, 1)), jnp.zeros(1, jnp.uint32)),
            r"ids of uint32\[1\] must be int32",
        ),
        (lambda: bag(mode="max"), "mode='max' must be one of"),
        (lambda: bag(values=jnp.ones(3)), r"rows.values of float32\[3\] must be float32, \[1\] or \[2\]"),
        (lambda: update(optimizer="rmsprop"), "optimizer='rmsprop' must be one of"),
        (lambda: unwrap(embedding.start_slots)(jnp.ones(3), "rmsprop"), "optimizer='rmsprop' must be one of"),
        (lambda: update(optimizer="adam"), r"slots of \[\] must be \[\(3,\), \(3, 2\), \(3, 2\)\]"),
        (lambda: update(gradients=jnp.ones((4, 3))), r"gradients.shape=\(4, 3\) must be \(4, 2\)"),
        (lambda: update(ids=jnp.zeros((4, 1), jnp.int32)), r"ids of int32\[4, 1\] must be int32, \[m\]"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def bag(mode="sum", values=None):
    rows = CSR(jnp.array([0, 2], jnp.int32), jnp.zeros(2, jnp.int32), jnp.ones(1) if values is None else values)
    return unwrap(embedding.bag)(jnp.ones((3, 1)), rows, mode=mode)


def update(optimizer="sgd", gradients=None, ids=None):
    ids = jnp.zeros(4, jnp.int32) if ids is None else ids
    gradients = jnp.ones((4, 2)) if gradients is None else gradients
    return unwrap(embedding.update_rows)(jnp.ones((3, 2)), (), ids, gradients, optimizer=optimizer, learning_rate=0.1)
