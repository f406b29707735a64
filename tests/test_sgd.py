"""Stochastic gradient descent: the kernel against its reference, the sampling, and the algorithms on planted data."""

from __future__ import annotations

import itertools
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from affinax.engine.data import Interactions
from affinax.engine.errors import DivergenceError, InteractionError
from affinax.engine.evaluation import evaluate
from affinax.engine.factorization import (
    biased_mf,
    bpr,
    fit,
    implicit_als,
    logistic_mf,
    softmax_mf,
    svd_plus_plus,
)
from affinax.engine.retrieval import fold_in, predict, ranking_rows, recommend, with_history
from affinax.kernels import sampling, sgd
from affinax.kernels import svd_plus_plus as feedback_kernel
from affinax.kernels.csr import CSR, entries

from . import naive
from .test_factorization import checkerboard, planted

pytestmark = pytest.mark.usefixtures("strict_dtypes")
KEY = jax.random.key(0)
each_implementation = pytest.mark.parametrize("implementation", ["numba", "reference"])


@pytest.fixture(scope="module")
def rows():
    """9 x 12, with an empty row and a row that has all but one column."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((9, 12)) < 0.4, rng.integers(1, 6, (9, 12)), 0)
    dense[4], dense[5, 1:] = 0, 2
    m = scipy.sparse.csr_array(dense)
    return CSR(*(jnp.asarray(a, d) for a, d in zip((m.indptr, m.indices, m.data), "iif", strict=True)))


def tables(rank, seed=1):
    rng = np.random.default_rng(seed)
    shapes = (9, rank), (12, rank), (9,), (12,)
    return sgd.Tables(*(jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32) for shape in shapes))


@pytest.mark.on_cpu
@pytest.mark.parametrize("rank", [5, 40])
@pytest.mark.parametrize("loss", ["squared", "logistic", "bpr", "softmax"])
@pytest.mark.parametrize("biases", [True, False])
def test_numba_takes_the_same_steps_as_the_reference(rows, loss, rank, biases):
    order = jnp.tile(sampling.permutation(KEY, rows.nnz), 2)
    rng = np.random.default_rng(2)
    negatives = jnp.asarray(rng.integers(-1, 12, (order.shape[0], 3)), jnp.int32)
    negatives = jnp.where(negatives == rows.indices[order][:, None], -1, negatives)  # no item is its own negative
    options = {"loss": loss, "learning_rate": 0.1, "l2": 0.05, "mean": 0.4, "biases": biases}
    (found, total), (expected, whole) = (
        sgd.sweep(tables(rank), rows, order, negatives, implementation=name, **options)
        for name in ("numba", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total, whole, rtol=1e-5)
    if not biases:
        np.testing.assert_array_equal(found.item_bias, tables(rank).item_bias)


def test_a_step_is_down_the_gradient(rows):
    """Of one entry, against JAX's own derivative of the loss and its l2."""
    start, entry, others = tables(4), 7, jnp.array([[3, 8]], jnp.int32)
    u = int(np.searchsorted(np.asarray(rows.indptr), entry, side="right")) - 1
    i, value = int(rows.indices[entry]), float(rows.values[entry])

    def score(t, item):
        return 0.5 + t.user_bias[u] + t.item_bias[item] + jnp.dot(t.users[u], t.items[item])

    def squares(t, *items):
        own = jnp.sum(t.users[u] ** 2) + t.user_bias[u] ** 2
        return 0.01 * (own + sum(jnp.sum(t.items[item] ** 2) + t.item_bias[item] ** 2 for item in items))

    def gradient(objective):
        return jax.tree.map(lambda t, g: t - 0.1 * g, start, jax.grad(objective)(start))

    first = jnp.array([entry], jnp.int32)
    options = {"learning_rate": 0.1, "l2": 0.02, "mean": 0.5}
    found, _ = sgd.sweep(start, rows, first, others[:, :0], loss="squared", **options)
    expected = gradient(lambda t: 0.5 * (value - score(t, i)) ** 2 + squares(t, i))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    found, _ = sgd.sweep(start, rows, first, others[:, :1], loss="bpr", **options)
    expected = gradient(lambda t: jax.nn.softplus(score(t, 3) - score(t, i)) + squares(t, i, 3))
    expected = expected._replace(user_bias=start.user_bias)  # which is the same for both items
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    found, _ = sgd.sweep(start, rows, first, others.at[0, 1].set(1), loss="softmax", **options)
    expected = gradient(
        lambda t: -jax.nn.log_softmax(jnp.stack([score(t, j) for j in (i, 3, 1)]))[0] + squares(t, i, 3, 1)
    )
    expected = expected._replace(user_bias=start.user_bias)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@each_implementation
def test_permutations(implementation):
    drawn = [sampling.permutation(jax.random.key(k), 6, implementation=implementation) for k in range(300)]
    assert all(sorted(order.tolist()) == list(range(6)) for order in drawn)
    counts = np.bincount([int(order[0]) for order in drawn], minlength=6)
    assert counts.min() > 25  # 50 expected, 3.9 standard deviations
    np.testing.assert_array_equal(drawn[3], sampling.permutation(jax.random.key(3), 6, implementation=implementation))


@each_implementation
@pytest.mark.parametrize("blocks", [1, 3, 16])
def test_blocks_of_a_stage_share_no_row_and_no_column(rows, implementation, blocks):
    order, bounds, groups = map(np.asarray, sampling.stages(KEY, rows, 12, blocks, implementation=implementation))
    assert sorted(order) == list(range(rows.nnz))
    assert sorted(groups[groups >= 0]) == list(range(12))
    assert groups.shape == (blocks, -(-12 // blocks))
    assert bounds.shape == (blocks, blocks + 1)
    np.testing.assert_array_equal(bounds[1:, 0], bounds[:-1, -1])
    row_of, columns = np.repeat(np.arange(9), np.diff(rows.indptr)), np.asarray(rows.indices)
    for stage, ends in enumerate(bounds):
        entries = [order[low:high] for low, high in itertools.pairwise(ends)]
        for block, own in enumerate(entries):
            assert np.isin(columns[own], groups[(block + stage) % blocks]).all()
        for side in (row_of, columns):
            seen = [set(side[e].tolist()) for e in entries]
            assert sum(map(len, seen)) == len(set().union(*seen))
    again = sampling.stages(KEY, rows, 12, blocks, implementation=implementation)
    np.testing.assert_array_equal(order, again.order)
    other = sampling.stages(jax.random.key(5), rows, 12, blocks, implementation=implementation)
    assert (order != np.asarray(other.order)).any()


@pytest.mark.on_cpu
@pytest.mark.parametrize("rank", [5, 40])
@pytest.mark.parametrize("loss", ["squared", "logistic", "bpr", "softmax"])
def test_stages_on_several_threads_equal_one_entry_after_the_other(rows, rank, loss):
    """Negatives included, where they come from the columns of the block."""
    order, bounds, groups = sampling.stages(KEY, rows, 12, 4)
    group_of = np.argsort(np.asarray(groups).ravel()) // groups.shape[1]
    pools = groups, jnp.asarray(group_of[np.asarray(rows.indices[order])], jnp.int32)
    row_of = np.repeat(np.arange(9), np.diff(rows.indptr))[np.asarray(order)]
    drawn = sampling.negatives(KEY, rows, jnp.asarray(row_of, jnp.int32), 12, 2, pools=pools)
    assert 0 < np.sum(np.asarray(drawn) >= 0) < drawn.size  # where a row has all of a group there is none
    drawn, options = drawn[:, : 0 if loss == "squared" else 2], {"loss": loss, "learning_rate": 0.1, "l2": 0.05}
    together, total = sgd.sweep(tables(rank), rows, order, drawn, bounds, **options)
    alone, whole = sgd.sweep(tables(rank), rows, order, drawn, implementation="numba", **options)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(total, whole, rtol=1e-5)
    with pytest.raises(ValueError, match="need no hogwild"):
        sgd.sweep(tables(rank), rows, order, drawn, bounds, hogwild=True, **options)


@each_implementation
@pytest.mark.parametrize("weighted", [False, True])
def test_negatives_of_pools_are_of_their_pool_and_as_frequent_as_asked(rows, implementation, weighted):
    weights = jnp.arange(12, dtype=jnp.float32) if weighted else None
    columns = jnp.array([[7, 2, 11, 4], [0, -1, -1, -1], [5, 9, 6, -1]], jnp.int32)
    pool_of = np.tile(np.arange(3, dtype=np.int32), 2000)
    of_empty = jnp.full(len(pool_of), 4, jnp.int32)
    drawn = sampling.negatives(
        KEY,
        rows,
        of_empty,
        12,
        2,
        weights=weights,
        pools=(columns, jnp.asarray(pool_of)),
        implementation=implementation,
    )
    for pool, own in enumerate(np.asarray(columns)):
        own = own[own >= 0]
        shares = own / max(own.sum(), 1) if weighted else np.full(len(own), 1 / len(own))
        found = np.asarray(drawn)[pool_of == pool].ravel()
        counts = np.bincount(found + 1, minlength=13)[1:] / len(found)
        np.testing.assert_allclose(counts[own], shares, atol=0.03)
        assert counts.sum() == pytest.approx(shares.sum())  # nothing of column 0, whose weight is 0
    of_full = sampling.negatives(
        KEY, rows, jnp.full(8, 5, jnp.int32), 12, 2, pools=(columns, jnp.full(8, 2, jnp.int32))
    )
    assert (np.asarray(of_full) == -1).all()  # row 5 has all of the last pool


@each_implementation
@pytest.mark.parametrize("weighted", [False, True])
def test_negatives_are_never_positives_and_as_frequent_as_asked(rows, implementation, weighted):
    weights = jnp.arange(1, 13, dtype=jnp.float32) if weighted else None
    asked = np.tile(np.arange(9, dtype=np.int32), 2000)
    drawn = sampling.negatives(KEY, rows, jnp.asarray(asked), 12, 2, weights=weights, implementation=implementation)
    found = np.asarray(drawn)
    dense = np.zeros((9, 12), bool)
    dense[np.repeat(np.arange(9), np.diff(rows.indptr)), rows.indices] = True
    assert not (dense[asked[:, None], found] & (found >= 0)).any()
    assert (found[asked != 5] >= 0).all()
    assert set(found[asked == 5].ravel()) == {0, -1}  # the only one there is, which not every draw met in time
    of_empty = np.bincount(found[asked == 4].ravel(), minlength=12) / 4000
    expected = np.arange(1, 13) / 78 if weighted else np.full(12, 1 / 12)
    np.testing.assert_allclose(of_empty, expected, atol=0.03)


@each_implementation
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_line_for_each_positive_is_one_for_each_of_their_rows(rows, implementation, blocks):
    """More lines than one thread takes at a time, so that some begin in the midst of a row."""
    rng = np.random.default_rng(5)
    dense = scipy.sparse.random_array((40, 500), density=0.6, format="csr", rng=rng)
    many = CSR(jnp.asarray(dense.indptr, jnp.int32), jnp.asarray(dense.indices, jnp.int32), jnp.ones(1))
    for positives, n_columns in ((rows, 12), (many, 500)):
        _, _, groups = sampling.stages(KEY, positives, n_columns, blocks)
        group_of = jnp.asarray(np.argsort(np.asarray(groups).ravel()) // groups.shape[1], jnp.int32)
        options = {"pools": (groups, group_of[positives.indices]), "implementation": implementation}
        row_of = entries(positives)[0]
        found, expected = (sampling.negatives(KEY, positives, r, n_columns, 2, **options) for r in (None, row_of))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.on_cpu
@pytest.mark.parametrize("density", [0.0, 0.02, 0.9])
def test_the_host_draws_what_a_program_does(density):
    """Though it looks for most pairs in marks alone, and in rows only where those are set."""
    dense = scipy.sparse.random_array((40, 500), density=density, format="csr", rng=np.random.default_rng(5))
    positives = dense.indptr.astype(np.int32), dense.indices.astype(np.int32)
    asked = np.tile(np.arange(40, dtype=np.int32), 50)
    of_program = sampling.negatives(KEY, CSR(*map(jnp.asarray, positives), jnp.ones(1)), jnp.asarray(asked), 500, 3)
    draw = sampling.host_negatives(500, 3, positives=positives)
    np.testing.assert_array_equal(draw(np.asarray(jax.random.key_data(KEY)), asked), of_program)


@each_implementation
def test_where_everything_is_positive_there_are_no_negatives(implementation):
    full = CSR(jnp.array([0, 3], jnp.int32), jnp.arange(3, dtype=jnp.int32), jnp.ones(1))
    found = sampling.negatives(KEY, full, jnp.zeros(4, jnp.int32), 3, 2, implementation=implementation)
    assert (np.asarray(found) == -1).all()
    found = sampling.negatives(KEY, full, None, 3, 2, implementation=implementation)
    assert (np.asarray(found) == -1).all()
    assert found.shape == (3, 2)
    none = full._replace(indptr=jnp.zeros(2, jnp.int32), indices=full.indices[:0])
    assert sampling.negatives(KEY, none, None, 3, 2, implementation=implementation).shape == (0, 2)


RANKERS = {
    "bpr": lambda **o: bpr(4, **({"learning_rate": 0.1, "l2": 1e-3} | o)),
    "logistic_mf": lambda **o: logistic_mf(4, **({"learning_rate": 0.1, "l2": 1e-3, "negatives": 3} | o)),
    "softmax_mf": lambda **o: softmax_mf(4, **({"learning_rate": 0.1, "l2": 1e-3, "negatives": 6} | o)),
}
each_ranker = pytest.mark.parametrize("build", RANKERS.values(), ids=RANKERS.keys())


@each_ranker
@pytest.mark.parametrize("options", [{}, {"hogwild": True}, {"popularity_exponent": 0.5}], ids=str)
def test_rankers_recover_what_was_planted(build, options):
    x, hidden = checkerboard()
    state, history = fit(build(**options), x, key=KEY, steps=60, progress=False)
    assert history.loss[-1] < 0.5 * history.loss[0]
    ids = np.asarray(recommend(state, np.arange(x.n_users), 1, seen=x)[0])[:, 0]
    some = hidden.reshape(x.shape).any(1)
    assert hidden.reshape(x.shape)[np.arange(x.n_users), ids][some].mean() > 0.85  # a quarter by chance


@pytest.mark.parametrize("hogwild", [False, True])
def test_ratings_recover_what_was_planted(hogwild):
    x, matrix = planted(density=0.8)
    state, _ = fit(biased_mf(4, learning_rate=0.03, l2=0.005, hogwild=hogwild), x, key=KEY, steps=150, progress=False)
    users, items = np.indices(matrix.shape).reshape(2, -1)
    error = np.asarray(predict(state, users, items)) - matrix.ravel()
    assert np.sqrt(np.mean(error**2)) < 0.15 * matrix.std()


def feedback_tables(rank):
    start, rng = tables(rank), np.random.default_rng(3)
    feedback = jnp.asarray(rng.normal(0, 0.3, (12, rank)), jnp.float32)
    return feedback_kernel.Tables(start.users, start.items, feedback, *start[2:])


@each_implementation
@pytest.mark.parametrize("rank", [1, 20])
def test_svd_plus_plus_is_the_algorithm_of_its_source(rows, implementation, rank):
    start = feedback_tables(rank)
    order = sampling.permutation(KEY, 9)
    options = {"learning_rate": 0.05, "l2": 0.1, "mean": 3.0}
    found, total = feedback_kernel.sweep(start, rows, order, implementation=implementation, **options)
    expected, whole = naive.svd_plus_plus(start, rows, np.asarray(order), **options)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(total, whole, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_svd_plus_plus_of_users_side_by_side(rows, batch_size):
    start, order = feedback_tables(5), sampling.permutation(KEY, 9)
    options = {"learning_rate": 0.05, "l2": 0.1, "mean": 3.0}
    found, _ = feedback_kernel.sweep(start, rows, order, side_by_side=batch_size, **options)
    expected = start
    for first in range(0, 9, batch_size):
        users = np.asarray(order)[first : first + batch_size]
        expected = naive.svd_plus_plus_side_by_side(expected, rows, users, **options)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
    with pytest.raises(NotImplementedError, match="users side by side are beyond the kernels"):
        feedback_kernel.sweep(start, rows, order, side_by_side=batch_size, implementation="numba", **options)


def test_svd_plus_plus_under_vmap_over_learning_rates():
    x, _ = planted(density=0.8)
    data, rates = x.to_device(), jnp.array([0.003, 0.03])

    def trained(rate):
        mf = svd_plus_plus(4, learning_rate=rate, l2=0.005, batch_size=8)
        state = mf.init(KEY, data)
        return jax.lax.scan(lambda s, k: (lambda new: (new[0], new[1].loss))(mf.step(k, s, data)), state, keys)[1]

    keys = jax.random.split(KEY, 40)
    losses = jax.jit(jax.vmap(trained))(rates)
    assert losses[1, -1] < min(0.1 * losses[1, 0], losses[0, -1])
    np.testing.assert_allclose(losses[1], jax.jit(trained)(rates[1]), rtol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_svd_plus_plus_recovers_what_was_planted_and_answers_newcomers(batch_size):
    x, matrix = planted(density=0.8)
    mf = svd_plus_plus(4, learning_rate=0.03, l2=0.005, batch_size=batch_size)
    state, _ = fit(mf, x, key=KEY, steps=150, progress=False)
    users, items = np.indices(matrix.shape).reshape(2, -1)
    error = np.asarray(predict(state, users, items)) - matrix.ravel()
    assert np.sqrt(np.mean(error**2)) < 0.25 * matrix.std()
    # Users' vectors are their own and their feedback; newcomers with the same histories come near to both.
    root = np.sqrt(np.diff(x.indptr))[:, None]
    given = x.with_values(np.ones(x.nnz)).to_scipy() @ np.asarray(state.feedback) / root
    np.testing.assert_allclose(state.users, np.asarray(state.own) + given, rtol=1e-4, atol=1e-5)
    newcomers = with_history(state, x)
    np.testing.assert_array_equal(fold_in(state, x), newcomers.users)
    with pytest.raises(ValueError, match="folds in users only"):
        fold_in(state, x, side="items")
    with pytest.raises(ValueError, match="folds in by one implementation, not by implementation='reference'"):
        fold_in(state, x, implementation="reference")
    again = np.asarray(predict(newcomers, users, items)) - matrix.ravel()
    assert np.sqrt(np.mean(again**2)) < 0.25 * matrix.std()


EVERY = RANKERS | {
    "biased_mf": lambda **o: biased_mf(4, **({"learning_rate": 0.05} | o)),
    "biased_mf, batches": lambda **o: biased_mf(4, **({"learning_rate": 0.05, "batch_size": 64} | o)),
    "svd_plus_plus": lambda **o: svd_plus_plus(4, **({"learning_rate": 0.05} | o)),
}


@pytest.mark.parametrize("build", EVERY.values(), ids=EVERY.keys())
class TestEveryAlgorithm:
    @pytest.mark.on_cpu
    def test_the_key_decides(self, build):
        x, _ = planted()
        runs = [fit(build(), x, key=jax.random.key(k), steps=2, progress=False)[0] for k in (0, 0, 1)]
        for one, other in zip(*map(jax.tree.leaves, runs[:2]), strict=True):
            np.testing.assert_array_equal(one, other)
        assert not np.allclose(runs[0].items, runs[2].items)

    def test_a_grid_of_learning_rates_trains_at_once(self, build):
        data = planted()[0].to_device()

        def train(rate):
            algorithm = build(learning_rate=rate)
            state = algorithm.init(KEY, data)
            return jax.lax.scan(lambda s, k: algorithm.step(k, s, data), state, jax.random.split(KEY, 2))[0].items

        grid = jnp.array([0.01, 0.1])
        together = jax.jit(jax.vmap(train))(grid)
        for place in range(2):
            np.testing.assert_allclose(together[place], jax.jit(train)(grid[place]), rtol=1e-4, atol=1e-5)

    def test_rows_without_interactions(self, build):
        x = checkerboard()[0]
        x = x.select(x.users != 3)
        state, _ = fit(build(), x.with_values(np.full(x.nnz, 2.0)), key=KEY, steps=2, progress=False)
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))
        assert not np.asarray(state.users[3]).any()

    def test_a_learning_rate_that_diverges_stops_with_the_last_good_state(self, build):
        x, _ = planted()
        with pytest.raises(DivergenceError, match=r"step \d+, .* is not finite .*learning_rate=1e\+30") as caught:
            fit(build(learning_rate=1e30), x, key=KEY, steps=20, progress=False)
        assert np.isfinite(np.asarray(caught.value.state.items)).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"learning_rate": -0.1}, "learning_rate=-0.1 must be finite and at least 0"),
            ({"l2": float("nan")}, "l2=nan must be finite"),
            ({"init_std": -1.0}, "init_std=-1.0 must be finite"),
        ],
    )
    def test_wrong_parameters_are_refused(self, build, options, message):
        with pytest.raises(ValueError, match=message):
            build(**options)


@each_ranker
@pytest.mark.parametrize("options", [{}, {"popularity_exponent": 0.75}, {"biases": False}], ids=str)
def test_newcomers_are_at_the_minimum_of_their_loss(build, options):
    """Against scipy, on the very negatives."""
    x, _ = checkerboard()
    state, _ = fit(build(**options), x, key=KEY, steps=20, progress=False)
    rows, key = x.to_device().by_user, jax.random.key(5)
    users, bias = ranking_rows.fold_in_by_ranking(state, rows, key, iterations=20)
    objective, n = state.objective, ranking_rows._NEGATIVES
    sequence = np.asarray(ranking_rows._sequence(key, objective.popularity, x.n_items))
    for user in (0, 7, 12):
        met = np.asarray(x.items_of(user))
        others = sequence[(np.arange(len(met))[:, None] * n + np.arange(n)) % len(sequence)]
        counts = np.where(np.isin(others, met), 0, 1 / n)
        logistic = (3, options.get("biases", True)) if build is RANKERS["logistic_mf"] else None
        softmax = 6 if build is RANKERS["softmax_mf"] else None
        expected = naive.ranking_row(
            state.items, state.item_bias, met, others, counts, float(objective.l2), logistic, softmax
        )
        found = np.append(users[user], bias[user]) if logistic else users[user]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(fold_in(state, x, key=key), users, rtol=0.1, atol=0.1)  # in 8 steps


@each_ranker
def test_newcomers_recover_what_was_planted(build):
    """Users who were not there in training are told apart as well as those who were."""
    x, hidden = checkerboard(n_users=80)
    trained = x.users < 40
    state, _ = fit(build(), x.select(trained), key=KEY, steps=60, progress=False)
    history = x.select(~trained)
    ids = np.asarray(recommend(state, np.arange(40, 80), 1, history=history, seen=history)[0])[:, 0]
    of_new = hidden.reshape(x.shape)[40:]
    some = of_new.any(1)
    assert of_new[np.arange(40), ids][some].mean() > 0.85


@each_ranker
def test_newcomers_alone_and_in_blocks_are_the_same(build, monkeypatch):
    x, _ = checkerboard()
    x = x.select(x.users != 3)
    state, _ = fit(build(), x, key=KEY, steps=10, progress=False)
    together = with_history(state, x, key=KEY)
    assert not np.asarray(together.users[3]).any()
    assert not np.asarray(together.user_bias[3]).any()
    monkeypatch.setattr(ranking_rows, "_AT_ONCE", 8_000)
    # Vectors of length 6, at a minimum that sums in another order find a little beside it.
    for other in (with_history(state, x, key=KEY), jax.jit(with_history)(state, x.to_device(), key=KEY)):
        np.testing.assert_allclose(other.users, together.users, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(other.user_bias, together.user_bias, rtol=1e-3, atol=1e-3)
    one = Interactions.from_coo(np.zeros(len(x.items_of(8)), int), x.items_of(8), n_items=x.n_items)
    np.testing.assert_allclose(fold_in(state, one, key=KEY)[0], together.users[8], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(fold_in(state, x, key=KEY), fold_in(state, x, key=KEY))
    assert not np.allclose(fold_in(state, x, key=jax.random.key(1)), together.users, atol=1e-3)
    reference = fold_in(state, x, key=KEY, implementation="reference")
    np.testing.assert_allclose(reference, together.users, rtol=1e-2, atol=1e-3)
    everything = Interactions.from_coo(np.zeros(x.n_items, int), np.arange(x.n_items))
    assert np.isfinite(np.asarray(fold_in(state, everything))).all()  # no negatives are left


@each_ranker
def test_newcomers_that_a_ranking_loss_cannot_have(build):
    x, _ = checkerboard()
    state, _ = fit(build(), x, key=KEY, steps=1, progress=False)
    with pytest.raises(ValueError, match="a ranking loss has vectors for new users alone"):
        fold_in(state, x.to_device().by_item, side="items")
    with pytest.raises(ValueError, match="a ranking loss has vectors for new users alone, and no gramian"):
        fold_in(state, x, gram=jnp.zeros((4, 4)))
    with pytest.raises(InteractionError, match="item 30 is outside"):
        fold_in(state, Interactions.from_coo([0], [30]))
    state, _ = fit(build(l2=0.0), x, key=KEY, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"l2=0: the vector of a newcomer may have no finite minimum; train with l2"):
        fold_in(state, x)


def test_newcomers_do_as_well_as_those_who_were_trained(movielens_100k):
    train, test = movielens_100k.with_values(None).split("random", test_fraction=0.2)
    new = np.isin(train.users, np.random.default_rng(0).permutation(train.n_users)[:200])
    test = test.select(np.isin(test.users, train.users[new]))
    for algorithm in (bpr(8, learning_rate=0.1), logistic_mf(8, learning_rate=0.05), softmax_mf(8, negatives=16)):
        whole, _ = fit(algorithm, train, key=KEY, steps=12, progress=False)
        known, _ = fit(algorithm, train.select(~new), key=KEY, steps=12, progress=False)
        trained, folded, nobody = (
            evaluate(model, test, train=train.select(new), names=("ndcg",)).means["ndcg_at_10"]
            for model in (whole, with_history(known, train.select(new)), known)
        )
        assert folded > 0.93 * trained, algorithm.name
        assert folded > 1.2 * nobody


def test_newcomers_get_the_least_squares_row_of_rating_models():
    x, _ = planted()
    state, _ = fit(biased_mf(3, l2=0.05), x, key=KEY, steps=3, progress=False)
    items, values = x.items_of(2), x.values[x.indptr[2] : x.indptr[3]]
    rest = values - np.asarray(state.mean) - np.asarray(state.item_bias)[items]
    table = np.concatenate([np.asarray(state.items)[items], np.ones((len(items), 1))], axis=1)
    expected = np.linalg.solve(table.T @ table + 0.05 * len(items) * np.eye(4), table.T @ rest)
    np.testing.assert_allclose(fold_in(state, x)[2], expected[:3], rtol=1e-4, atol=1e-5)
    als = implicit_als(3)
    with pytest.raises(ValueError, match="was not made by biased_mf, bpr, logistic_mf or softmax_mf"):
        bpr(3).step(KEY, als.init(KEY, x.to_device()), x.to_device())


def test_an_unknown_loss_is_refused(rows):
    first = jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match="loss='hinge' must be one of"):
        unwrap(sgd.sweep)(tables(3), rows, first, first[:, None], loss="hinge", learning_rate=0.1, l2=0.0)
    with pytest.raises(NotImplementedError, match="rank 1025 is above 1024"):
        sgd.sweep(
            tables(1025), rows, first, first[:, None], loss="bpr", learning_rate=0.1, l2=0.0, implementation="numba"
        )
