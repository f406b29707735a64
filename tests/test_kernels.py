"""Every implementation of every kernel against float64 oracles, under every transformation."""

from __future__ import annotations

import functools
from inspect import unwrap  # what a user has, without the type checker of the tests

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.core import Tracer
from jax.sharding import PartitionSpec as P

from affinax.engine.data import Interactions
from affinax.kernels import (
    best_of_rows,
    co_rated,
    least_squares,
    neighbor_mean,
    op,
    sparse_product,
    sparse_top_k,
    top_k,
    weighted_gramian,
)
from affinax.kernels.csr import CSR, SparseMatrix
from affinax.kernels.op import Op, all_float32

from . import naive
from .cases import (
    LEAST_SQUARES,
    RATINGS,
    SPARSE_TOP_K,
    TOP_K,
    least_squares_arguments,
    ratings_of,
    sparse_top_k_arguments,
    top_k_arguments,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

IMPLEMENTATIONS = ["reference", "numba"]
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
each_system = pytest.mark.parametrize("case", LEAST_SQUARES, ids=lambda case: case.name)
each_search = pytest.mark.parametrize("case", TOP_K, ids=lambda case: case.name)


def on_device(arrays):
    return {name: array if isinstance(array, int) else jnp.asarray(array) for name, array in arrays.items()}


def solve(arrays, **options):
    """In one program: a reference outside jit compiles each of its operations alone, which takes longer."""
    return jax.jit(functools.partial(least_squares.solve, **options))(**on_device(arrays))


def search(arrays, **options):
    arrays = on_device(arrays)
    seen = CSR(arrays.pop("seen_indptr"), arrays.pop("seen_indices"), jnp.ones(1))
    found = functools.partial(top_k.search, k=arrays.pop("k"), **options)
    return jax.jit(found)(**arrays, seen=seen)


def devices():
    """A mesh of four virtual devices, of the kind in which plain arrays are placed as they are needed."""
    return jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices("cpu")[:4])


def close(found, expected, tolerance):
    scale = max(np.abs(expected).max(initial=0), 1e-6)
    assert np.abs(np.asarray(found, np.float64) - expected).max(initial=0) <= tolerance * scale


@each_implementation
@each_system
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cholesky_is_exact(case, implementation, dtype):
    arrays = least_squares_arguments(case)
    arrays["table"] = jnp.asarray(arrays["table"], dtype)
    x, loss = naive.least_squares(**arrays)
    found = solve(arrays, solver="cholesky", implementation=implementation)
    close(found.x, x, 1e-4)
    close(found.loss, loss, 1e-4)
    assert not np.asarray(found.jittered).any()


@each_implementation
@each_system
@pytest.mark.parametrize("solver", ["cg", "subspace"])
def test_iterative_solvers_converge(case, implementation, solver):
    arrays = least_squares_arguments(case)
    x, loss = naive.least_squares(**arrays)
    start = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    found = solve(arrays | {"start": start}, solver=solver, iterations=300, block=5, implementation=implementation)
    close(found.x, x, 2e-3)
    close(found.loss, loss, 1e-3)


@pytest.mark.on_cpu
@each_system
@pytest.mark.parametrize(("solver", "dtype"), [("cg", jnp.float32), ("cg", jnp.bfloat16), ("subspace", jnp.float32)])
def test_numba_takes_the_same_steps_as_the_reference(case, solver, dtype):
    arrays = least_squares_arguments(case)
    arrays["table"] = jnp.asarray(arrays["table"], dtype)
    n_rows, rank = len(case.lengths), case.rank
    rng = np.random.default_rng(2)
    extra = {name: rng.normal(size=(n_rows, rank)).astype(np.float32) for name in ("start", "rhs")}
    found, expected = (
        solve(arrays | extra, solver=solver, iterations=2, block=5, implementation=implementation)
        for implementation in ("numba", "reference")
    )
    close(found.x, np.asarray(expected.x), 1e-4)
    close(found.loss, np.asarray(expected.loss), 1e-3)


@pytest.mark.on_cpu
def test_long_vectors():
    arrays = least_squares_arguments(LEAST_SQUARES[5]._replace(n_columns=900, rank=400))
    x, _ = naive.least_squares(**arrays)
    close(solve(arrays, solver="cg", iterations=60, implementation="numba").x, x, 1e-3)


@each_implementation
def test_a_matrix_that_does_not_factorize_is_jittered(implementation):
    table = np.ones((2, 4), np.float32)  # rank 1
    arrays = {
        "indptr": np.array([0, 2], np.int32),
        "indices": np.array([0, 1], np.int32),
        "weights": np.ones(1, np.float32),
        "targets": np.ones(1, np.float32),
        "table": table,
        "gram": np.zeros((4, 4), np.float32),
        "l2": np.zeros(1, np.float32),
    }
    found = solve(arrays, solver="cholesky", implementation=implementation)
    close(found.x @ table.T, np.ones((1, 2)), 1e-3)
    # A matrix that stays indefinite under every jitter gives NaN, not a wrong answer.
    arrays["gram"] = np.diag([-1e9, 0, 0, 0]).astype(np.float32)
    broken = solve(arrays, solver="cholesky", implementation=implementation)
    assert np.isnan(np.asarray(broken.x)).any()
    assert int(broken.jittered[0]) == 4


@pytest.mark.on_cpu
def test_an_entry_outside_the_table_breaks_its_row_alone():
    arrays = least_squares_arguments(LEAST_SQUARES[2])
    arrays["indices"][-1] = 99
    for solver in ("cholesky", "cg"):
        found = solve(arrays, solver=solver, implementation="numba")
        assert np.isnan(np.asarray(found.x[-1])).all()
        assert np.isfinite(np.asarray(found.x[:-1])).all()


@each_implementation
def test_not_finite_input_is_seen(implementation):
    for name in ("targets", "weights"):
        arrays = least_squares_arguments(LEAST_SQUARES[2])
        arrays[name][0] = np.nan
        for solver in ("cholesky", "cg"):
            found = solve(arrays, solver=solver, implementation=implementation)
            assert not np.isfinite(np.asarray(found.x[0])).all(), (name, solver)
            assert np.isfinite(np.asarray(found.x[1:])).all()


@each_implementation
def test_least_squares_under_transformations(implementation):
    arrays = {name: jnp.asarray(array) for name, array in least_squares_arguments(LEAST_SQUARES[4]).items()}

    def solved(l2):
        return least_squares.solve(**(arrays | {"l2": l2}), solver="cholesky", implementation=implementation).x

    eager = solved(arrays["l2"])
    close(jax.jit(solved)(arrays["l2"]), np.asarray(eager), 1e-6)
    grid = jnp.stack([arrays["l2"], 2 * arrays["l2"]])
    mapped = jax.jit(jax.vmap(solved))(grid)
    close(mapped[0], np.asarray(eager), 1e-5)
    close(mapped[1], np.asarray(solved(grid[1])), 1e-5)


@each_implementation
def test_least_squares_sharded_over_devices(implementation):
    """Blocks of equal shape, one to a device, all solving at once."""
    rng = np.random.default_rng(5)
    items = np.stack([rng.choice(40, 5, replace=False) for _ in range(64)])
    x = Interactions.from_coo(np.repeat(np.arange(64), 5), items.ravel(), n_items=40)
    table, one = jnp.asarray(rng.normal(size=(40, 8)), jnp.float32), jnp.ones(1)

    def solved(rows):
        return least_squares.solve(
            rows.indptr,
            rows.indices,
            one,
            one,
            table,
            jnp.eye(8),
            one,
            solver="cholesky",
            implementation=implementation,
        ).x

    whole = solved(x.to_device().by_user)
    blocks = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(block for _, block in x.blocks(max_entries=80)))
    sharded = jax.shard_map(
        lambda block: solved(jax.tree.map(lambda a: a[0], block)),
        mesh=devices(),
        in_specs=P("rows"),
        out_specs=P("rows"),
        check_vma=False,
    )
    close(jax.jit(sharded)(blocks), np.asarray(whole), 1e-5)


@each_implementation
@pytest.mark.parametrize("name", ["weights", "targets", "table", "gram", "l2", "rhs"])
@pytest.mark.parametrize("case", [LEAST_SQUARES[2], LEAST_SQUARES[3]], ids=lambda case: case.name)
def test_least_squares_gradients(case, implementation, name):
    arrays = least_squares_arguments(case)
    rng = np.random.default_rng(3)
    shape = (len(case.lengths), case.rank)
    arrays["rhs"] = rng.normal(size=shape).astype(np.float32)
    mix, mix_loss = rng.normal(size=shape), rng.normal(size=len(case.lengths))
    direction = rng.normal(size=arrays[name].shape)
    if name == "gram":
        direction = direction + direction.T

    def scalar(value):
        found = solve(arrays | {name: value}, solver="cholesky", implementation=implementation)
        return jnp.sum(found.x * mix.astype(np.float32)) + jnp.sum(found.loss * mix_loss.astype(np.float32))

    slope = np.sum(np.asarray(jax.jit(jax.grad(scalar))(jnp.asarray(arrays[name]))) * direction)

    def exact(step):
        x, loss = naive.least_squares(**(arrays | {name: arrays[name].astype(np.float64) + step * direction}))
        return np.sum(x * mix) + np.sum(loss * mix_loss)

    expected = (exact(1e-5) - exact(-1e-5)) / 2e-5
    assert slope == pytest.approx(expected, rel=2e-3, abs=1e-3)


@each_implementation
@each_search
def test_top_k_is_exact(case, implementation):
    arrays = top_k_arguments(case)
    seen = np.split(arrays["seen_indices"], arrays["seen_indptr"][1:-1])
    ids, scores = search(arrays, implementation=implementation)
    expected_ids, expected = naive.top_k(arrays["queries"], arrays["items"], case.k, seen=seen)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected.astype(np.float32))


@each_implementation
@pytest.mark.parametrize("case", TOP_K[3:5], ids=lambda case: case.name)
def test_top_k_filters_together(case, implementation):
    arrays = top_k_arguments(case)
    rng = np.random.default_rng(4)
    exclude = rng.integers(-1, case.n_items, (case.batch, 40)).astype(np.int32)
    allow = rng.random(case.n_items) < 0.5
    seen = np.split(arrays["seen_indices"], arrays["seen_indptr"][1:-1])
    ids, _ = search(arrays | {"exclude": exclude, "allow": allow}, implementation=implementation)
    expected, _ = naive.top_k(arrays["queries"], arrays["items"], case.k, seen=seen, exclude=exclude, allow=allow)
    np.testing.assert_array_equal(ids, expected)


@each_implementation
def test_nan_and_infinity_never_rank(implementation):
    items = jnp.asarray([[1.0], [jnp.nan], [3.0], [-jnp.inf], [2.0]])
    ids, scores = top_k.search(jnp.ones((1, 1)), items, 5, implementation=implementation)
    assert ids.tolist() == [[2, 4, 0, -1, -1]]
    assert scores.tolist() == [[3.0, 2.0, 1.0, -np.inf, -np.inf]]


@each_implementation
def test_top_k_under_transformations(implementation):
    arrays = {name: jnp.asarray(a) if name != "k" else a for name, a in top_k_arguments(TOP_K[0]).items()}

    seen = CSR(arrays.pop("seen_indptr"), arrays.pop("seen_indices"), jnp.ones(1))

    def found(queries):
        return top_k.search(**(arrays | {"queries": queries}), seen=seen, implementation=implementation)

    ids, _ = found(arrays["queries"])
    np.testing.assert_array_equal(jax.jit(found)(arrays["queries"])[0], ids)
    mapped = jax.vmap(found)(jnp.stack([arrays["queries"], -arrays["queries"]]))
    np.testing.assert_array_equal(mapped[0][0], ids)
    gradient = jax.grad(lambda q: jnp.sum(jnp.where(jnp.isfinite(found(q)[1]), found(q)[1], 0.0)))(arrays["queries"])
    np.testing.assert_allclose(gradient[0], np.asarray(arrays["items"])[np.asarray(ids[0])].sum(0), rtol=1e-5)


@each_implementation
def test_top_k_sharded_over_devices(implementation):
    rng = np.random.default_rng(6)
    queries, items = (jnp.asarray(rng.integers(-2, 3, (n, 5)), jnp.float32) for n in (48, 100))

    def best(queries):
        return top_k.search(queries, items, 7, implementation=implementation)

    sharded = jax.shard_map(best, mesh=devices(), in_specs=P("rows"), out_specs=P("rows"), check_vma=False)
    for found, expected in zip(jax.jit(sharded)(queries), best(queries), strict=True):
        np.testing.assert_array_equal(found, expected)


def as_csr(dense):
    matrix = scipy.sparse.csr_array(dense)
    return CSR(*(jnp.asarray(a, d) for a, d in zip((matrix.indptr, matrix.indices, matrix.data), "iif", strict=True)))


@each_implementation
@pytest.mark.parametrize("similarity", ["product", "shrunk", "jaccard"])
@pytest.mark.parametrize("case", SPARSE_TOP_K, ids=lambda case: case.name)
def test_sparse_top_k_is_exact(case, similarity, implementation):
    arrays = sparse_top_k_arguments(case)
    queries, table, rows = arrays["queries"], arrays["table"], arrays["rows"]
    sizes = arrays["query_sizes"][rows], arrays["column_sizes"]
    seen = [np.flatnonzero(row) for row in arrays["seen"]]
    masks = {name: arrays[name] for name in ("exclude", "among", "allow")}
    for given in ({}, masks):
        expected_ids, expected = naive.sparse_top_k(
            queries[rows], table, case.k, similarity, sizes, 2.0, not case.dense, **given, seen=seen if given else None
        )
        seen_too = {"seen": as_csr(arrays["seen"]), "seen_rows": jnp.arange(case.batch, dtype=jnp.int32)}
        static = {"k": case.k, "n_columns": case.n_columns, "similarity": similarity, "implementation": implementation}
        ids, scores = jax.jit(functools.partial(sparse_top_k.search, **static))(
            as_csr(queries),
            jnp.asarray(rows),
            jnp.asarray(table) if case.dense else as_csr(table),
            query_sizes=jnp.asarray(arrays["query_sizes"]),
            column_sizes=jnp.asarray(arrays["column_sizes"]),
            shrink=2.0,
            **(on_device(given) | seen_too if given else {}),
        )
        np.testing.assert_allclose(scores, expected, rtol=2e-6)
        if similarity == "product":
            np.testing.assert_array_equal(ids, expected_ids)


@each_implementation
def test_sparse_top_k_under_transformations(implementation):
    arrays = sparse_top_k_arguments(SPARSE_TOP_K[2])
    queries, table = as_csr(arrays["queries"]), as_csr(arrays["table"])

    def found(rows, values):
        return sparse_top_k.search(
            queries._replace(values=values), rows, table, 5, n_columns=131, implementation=implementation
        )

    rows = jnp.arange(36, dtype=jnp.int32)
    expected = found(rows, queries.values)
    sharded = jax.shard_map(found, mesh=devices(), in_specs=(P("rows"), P()), out_specs=P("rows"), check_vma=False)
    mapped = jax.vmap(found, in_axes=(None, 0))(rows, jnp.stack([-queries.values, queries.values]))
    for found_too in (jax.jit(found)(rows, queries.values), jax.jit(sharded)(rows, queries.values)):
        np.testing.assert_array_equal(found_too[0], expected[0])
    np.testing.assert_array_equal(mapped[0][1], expected[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"similarity": "magic"}, "similarity='magic'"),
        ({"similarity": "shrunk"}, "needs query_sizes"),
    ],
)
def test_sparse_top_k_refuses(change, message):
    rows = as_csr(np.eye(3, dtype=np.float32))
    arguments = {"queries": rows, "rows": jnp.zeros(1, jnp.int32), "table": rows, "k": 1, "n_columns": 3}
    with pytest.raises(ValueError, match=message):
        unwrap(sparse_top_k.search)(**(arguments | change))


each_ratings = pytest.mark.parametrize("case", RATINGS, ids=lambda case: case.name)


def both_ways(dense):
    return SparseMatrix(as_csr(dense), as_csr(dense.T))


@each_implementation
@each_ratings
@pytest.mark.parametrize("similarity", ["cosine", "msd"])
@pytest.mark.parametrize(("shrink", "min_support"), [(0.0, 1), (10.0, 3)])
def test_co_rated_is_exact(case, implementation, similarity, shrink, min_support):
    ratings = ratings_of(case)
    rows = np.random.default_rng(1).permutation(case.n_rows).astype(np.int32)
    found = naive.co_rated_similarities(ratings, similarity, shrink, min_support)[rows]
    _, expected = naive.best(np.where(found > 0, found, -np.inf), case.k)
    static = {"k": case.k, "similarity": similarity, "implementation": implementation}
    found_by = jax.jit(functools.partial(co_rated.search, **static))
    ids, scores = found_by(both_ways(ratings), jnp.asarray(rows), shrink=shrink, min_support=min_support)
    np.testing.assert_allclose(scores, expected, rtol=3e-6)
    np.testing.assert_array_equal(np.asarray(ids) >= 0, np.isfinite(expected))
    there = np.asarray(ids) >= 0
    np.testing.assert_allclose(np.take_along_axis(found, np.asarray(ids), axis=1)[there], expected[there], rtol=3e-6)


@each_implementation
@each_ratings
def test_neighbor_mean_is_exact(case, implementation):
    ratings, rng = ratings_of(case), np.random.default_rng(2)
    similarities = np.where(rng.random((case.n_columns,) * 2) < 0.3, rng.random((case.n_columns,) * 2), 0)
    order = np.argsort(-similarities, axis=1, kind="stable")
    lengths = (similarities > 0).sum(1)
    similar = CSR(
        jnp.asarray(np.append(0, np.cumsum(lengths)), jnp.int32),
        jnp.asarray(np.concatenate([o[:n] for o, n in zip(order, lengths, strict=True)]), jnp.int32),
        jnp.asarray(
            -np.concatenate([np.sort(-s)[:n] for s, n in zip(similarities, lengths, strict=True)]), jnp.float32
        ),
    )
    rows = rng.integers(0, case.n_columns, 60).astype(np.int32)
    others = rng.integers(0, case.n_rows, 60).astype(np.int32)

    def found(k):
        pairs = jnp.asarray(rows), jnp.asarray(others)
        return neighbor_mean.weighted_mean(similar, as_csr(ratings), *pairs, k, implementation=implementation)

    expected = [
        [naive.neighbor_mean(similarities, ratings, ratings != 0, *pair, k) for pair in zip(rows, others, strict=True)]
        for k in (1, case.k)
    ]
    np.testing.assert_allclose(jax.jit(jax.vmap(found))(jnp.array([1, case.k])), expected, rtol=1e-5)


@each_implementation
@each_ratings
def test_sparse_product_is_exact(case, implementation):
    table, rng = ratings_of(case), np.random.default_rng(3)
    rows = np.where(rng.random((4, case.n_rows)) < 0.5, rng.normal(size=(4, case.n_rows)), 0).astype(np.float32)
    sparse = as_csr(table)

    def product(rows, values):
        return sparse_product.multiply(
            rows, sparse._replace(values=values), case.n_columns, implementation=implementation
        )

    found = product(jnp.asarray(rows), sparse.values)
    np.testing.assert_allclose(found, rows.astype(np.float64) @ table, rtol=1e-5, atol=1e-4)
    mapped = jax.jit(jax.vmap(product, in_axes=(0, None)))(jnp.asarray(rows)[:, None], sparse.values)
    np.testing.assert_allclose(mapped[:, 0], found, rtol=1e-5, atol=1e-4)
    mix = rng.normal(size=found.shape).astype(np.float32)
    slopes = jax.jit(jax.grad(lambda r, v: jnp.sum(product(r, v) * mix), (0, 1)))
    by_rows, by_values = slopes(jnp.asarray(rows), sparse.values)
    np.testing.assert_allclose(by_rows, mix @ table.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(by_values, (rows.T @ mix)[np.nonzero(table)], rtol=1e-4, atol=1e-3)


@each_implementation
@each_ratings
def test_weighted_gramian_is_exact(case, implementation):
    table, rng = ratings_of(case), np.random.default_rng(4)
    weights, sparse = rng.normal(size=(2, case.n_rows)).astype(np.float32), as_csr(table)

    def gramian(weights, rows):
        return weighted_gramian.compute(rows, weights, case.n_columns, implementation=implementation)

    grid = jax.jit(jax.vmap(gramian, in_axes=(0, None)))
    for rows, dense in ((sparse, table), (sparse._replace(values=jnp.array([2.0])), 2.0 * (table != 0))):
        found = grid(jnp.asarray(weights), rows)
        for place in range(2):
            close(found[place], (dense.T.astype(np.float64) * weights[place]) @ dense, 1e-6)
    close(gramian(jnp.asarray(weights[0]), sparse), np.float64(grid(jnp.asarray(weights), sparse)[0]), 1e-6)


@each_implementation
def test_rating_kernels_sharded_over_devices(implementation):
    ratings = ratings_of(RATINGS[2])
    matrix, rows = both_ways(ratings), jnp.arange(36, dtype=jnp.int32)
    similar = both_ways(ratings.T @ ratings).by_user
    dense = jnp.asarray(ratings[:36].T[:36])

    def found(rows):
        ids, scores = co_rated.search(matrix, rows, 4, implementation=implementation)
        means = neighbor_mean.weighted_mean(similar, matrix.by_user, rows, rows, 3, implementation=implementation)
        product = sparse_product.multiply(dense[rows % 36], similar_rows, 71, implementation=implementation)
        gramians = jax.vmap(lambda w: weighted_gramian.compute(similar_rows, w, 71, implementation=implementation))
        return ids, scores, means, product, gramians(dense[rows % 36])

    similar_rows = as_csr(ratings[:36])
    sharded = jax.shard_map(found, mesh=devices(), in_specs=P("rows"), out_specs=P("rows"), check_vma=False)
    for one, other in zip(jax.jit(sharded)(rows), found(rows), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"), [({"k": 0}, "k=0"), ({"similarity": "pearson"}, "similarity='pearson'")]
)
def test_co_rated_refuses(change, message):
    arguments = {"matrix": both_ways(np.eye(3, dtype=np.float32)), "rows": jnp.zeros(1, jnp.int32), "k": 1}
    with pytest.raises(ValueError, match=message):
        unwrap(co_rated.search)(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similar": as_csr(np.eye(3, 4, 1, dtype=np.float32))}, r"similar has column 3; similar has 3 rows"),
        ({"values": as_csr(np.ones((2, 5), np.float32))}, r"values has column 4; .* and values \[m, 3\]"),
        ({"others": jnp.zeros(2, jnp.int32)}, r"rows.shape=\(1,\) and others.shape=\(2,\) must be the same"),
        ({"k": 0}, "k=0 must be at least 1"),
    ],
)
def test_neighbor_mean_refuses(change, message):
    square, one = as_csr(np.eye(3, dtype=np.float32)), jnp.zeros(1, jnp.int32)
    arguments = {"similar": square, "values": square, "rows": one, "others": one, "k": 1}
    with pytest.raises(ValueError, match=message):
        unwrap(neighbor_mean.weighted_mean)(**(arguments | change))


def test_sparse_product_refuses_other_widths():
    with pytest.raises(ValueError, match=r"rows.shape=\(2, 4\) must be \[batch, 3\]"):
        unwrap(sparse_product.multiply)(jnp.ones((2, 4)), as_csr(np.eye(3, dtype=np.float32)), 3)


@pytest.mark.on_cpu
def test_dispatch_refuses_what_cannot_run():
    arguments = (jnp.ones((1, 2)), jnp.ones((3, 2)), 1)
    with pytest.raises(NotImplementedError, match=r'top_k.*"pallas".*"auto" would take "numba"'):
        top_k.search(*arguments, implementation="pallas")
    with pytest.raises(ValueError, match="must be one of"):
        unwrap(top_k.search)(*arguments, implementation="fastest")
    wide = least_squares_arguments(LEAST_SQUARES[1]._replace(rank=1025))
    with pytest.raises(NotImplementedError, match="rank 1025 is above 1024"):
        solve(wide, implementation="numba")
    assert solve(wide).x.shape == (1, 1025)


@pytest.mark.on_cpu
def test_auto_takes_the_special_implementation():
    called = []
    marked = Op("marked", lambda x: x, lambda x: None, numba=lambda x: called.append(1) or x)
    op.dispatch(marked, jnp.ones(1))
    assert called == [1]


def test_outside_jit_an_operation_is_one_program():
    """Made once for a shape, and again for other parameters."""
    traced = []
    times = Op("times", lambda x, *, n: traced.append(isinstance(x, Tracer)) or n * x, all_float32)
    found = [op.dispatch(times, jnp.ones(shape), n=n).sum() for shape, n in [(1, 2), (1, 2), (1, 3), (2, 3)]]
    np.testing.assert_array_equal(found, [2, 2, 3, 6])
    assert traced == [True] * 3


def test_a_program_for_other_platforms_holds_the_reference():
    def search(queries, items):
        return top_k.search(queries, items, 2, implementation="reference")

    shapes = jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((5, 3), jnp.float32)
    exported = jax.export.export(jax.jit(search), platforms=["cuda", "tpu", "cpu"])(*shapes)
    ids, _ = exported.call(jnp.ones((2, 3)), jnp.eye(5, 3))
    assert ids.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.ones(3, np.float32)}, "weights.shape"),
        ({"l2": np.ones(4, np.float32)}, "l2.shape"),
        ({"solver": "magic"}, "solver='magic'"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_least_squares_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        unwrap(least_squares.solve)(**(least_squares_arguments(LEAST_SQUARES[4]) | change))


@pytest.mark.parametrize("way", ["one", "tiled"])
@pytest.mark.parametrize(("n", "k"), [(1, 3), (64, 1), (65, 1), (1000, 7), (1000, 1000)])
def test_best_of_rows(way, n, k):
    """Ties, rows that are nearly or wholly empty, widths that fill no tile; an accelerator takes the tiles."""
    scores = np.random.default_rng(0).integers(0, 9, (5, n)).astype(np.float32)
    scores[0, 1:], scores[1] = -np.inf, -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, expected, axis=1)
    expected = np.pad(np.where(best == -np.inf, -1, expected), [(0, 0), (0, k - best.shape[1])], constant_values=-1)
    if way == "one":
        places, found = jax.jit(best_of_rows.best_of_rows, static_argnums=1)(jnp.asarray(scores), k)
        np.testing.assert_array_equal(places, expected)
    else:
        kept = min(k, -(-n // 64))
        found, places = best_of_rows.by_tiles(jnp.asarray(scores), kept)
        np.testing.assert_array_equal(np.where(found == -np.inf, -1, places), expected[:, :kept])
        best = best[:, :kept]
    np.testing.assert_array_equal(np.asarray(found)[:, : best.shape[1]], best)
