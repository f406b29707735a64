"""ALS: the objective it claims, the normal equations, the worked examples, and what every algorithm must do."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.engine.data import Interactions
from affinax.engine.errors import DivergenceError
from affinax.engine.factorization import Algorithm, Factors, explicit_als, fit, implicit_als
from affinax.engine.retrieval import fold_in, predict, recommend

from . import naive

pytestmark = pytest.mark.usefixtures("strict_dtypes")
KEY = jax.random.key(0)


class Conformance(NamedTuple):
    """An algorithm that every test of `TestEveryAlgorithm` is run on: `build(l2)` makes it."""

    name: str
    build: Callable[..., Algorithm]
    implicit: bool


ALGORITHMS = [
    Conformance("implicit_als cholesky", lambda l2, rank=8: implicit_als(rank, l2=l2, solver="cholesky"), True),
    Conformance("implicit_als cg", lambda l2, rank=8: implicit_als(rank, l2=l2, solver="cg"), True),
    Conformance(
        "implicit_als subspace", lambda l2, rank=8: implicit_als(rank, l2=l2, solver="subspace", block=4), True
    ),
    Conformance(
        "implicit_als bfloat16",
        lambda l2, rank=8: implicit_als(rank, l2=l2, solver="cg", table_dtype=jnp.bfloat16),
        True,
    ),
    Conformance("implicit_als with alpha", lambda l2, rank=8: implicit_als(rank, l2=l2, alpha=2.0), True),
    Conformance(
        "implicit_als reference", lambda l2, rank=8: implicit_als(rank, l2=l2, implementation="reference"), True
    ),
    Conformance("explicit_als", lambda l2, rank=8: explicit_als(rank, l2=l2), False),
    Conformance("explicit_als without biases", lambda l2, rank=8: explicit_als(rank, l2=l2, biases=False), False),
]


def checkerboard(n_users=40, n_items=30, hidden=0.3, seed=0):
    """Users like items of their own parity; a share of the liked pairs is held back."""
    users, items = np.indices((n_users, n_items)).reshape(2, -1)
    liked = users % 2 == items % 2
    shown = liked & (np.random.default_rng(seed).random(len(users)) > hidden)
    return Interactions.from_coo(users[shown], items[shown], n_users=n_users, n_items=n_items), liked & ~shown


def planted(n_users=60, n_items=40, rank=3, density=0.5, seed=0):
    """Ratings of a matrix of low rank, some of them shown: `(interactions, matrix)`."""
    rng = np.random.default_rng(seed)
    matrix = 3 + rng.normal(size=(n_users, rank)) @ rng.normal(size=(rank, n_items)) / np.sqrt(rank)
    users, items = np.nonzero(rng.random(matrix.shape) < density)
    shape = {"n_users": n_users, "n_items": n_items}
    return Interactions.from_coo(users, items, matrix[users, items], **shape), matrix


@pytest.mark.parametrize("case", ALGORITHMS, ids=lambda case: case.name)
class TestEveryAlgorithm:
    def test_recovers_what_was_planted(self, case):
        if case.implicit:
            x, hidden = checkerboard()
            state, _ = fit(case.build(1e-2, rank=2), x, key=KEY, steps=15, progress=False)
            ids, _ = recommend(state, np.arange(x.n_users), 5, seen=x)
            ids = np.asarray(ids)
            found = hidden.reshape(x.shape)[np.arange(x.n_users)[:, None], np.maximum(ids, 0)] | (ids < 0)
            few = hidden.reshape(x.shape).sum(1) < 5
            assert found[~few].mean() > 0.98
        else:
            x, matrix = planted(density=0.8)  # of rank 3, and one more for its mean
            state, _ = fit(case.build(1e-2, rank=4), x, key=KEY, steps=30, progress=False)
            users, items = np.indices(matrix.shape).reshape(2, -1)
            error = np.asarray(predict(state, users, items)) - matrix.ravel()
            assert np.sqrt(np.mean(error**2)) < 0.1 * matrix.std()

    def test_loss_falls(self, case):
        x, _ = planted()
        _, history = fit(case.build(0.1), x, key=KEY, steps=6, progress=False)
        assert (np.diff(history.loss) <= 1e-4 * history.loss[0]).all()

    def test_jit_equals_eager_and_keys_decide(self, case):
        x, _ = planted()
        data, algorithm = x.to_device(), case.build(0.1)

        def one(key):
            return algorithm.step(key, algorithm.init(key, data), data)[0]

        jitted = jax.jit(one)
        for a, b in zip(jax.tree.leaves(one(KEY)), jax.tree.leaves(jitted(KEY)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
        bits = jax.default_backend() == "cpu"  # a GPU adds up in no fixed order
        for a, b in zip(jax.tree.leaves(jitted(KEY)), jax.tree.leaves(jitted(KEY)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0 if bits else 1e-4, atol=0 if bits else 1e-5)
        other = jitted(jax.random.key(1))
        assert not np.allclose(other.items, jitted(KEY).items)

    def test_a_grid_of_l2_and_a_loop_of_the_users_own_train_as_fit_does(self, case):
        x, _ = planted()
        data, grid = x.to_device(), jnp.array([0.01, 0.1, 1.0])

        def train(l2):
            algorithm = case.build(l2)
            init_key, key = jax.random.split(KEY)
            state = algorithm.init(init_key, data)
            return jax.lax.scan(lambda s, k: algorithm.step(k, s, data), state, jax.random.split(key, 5))

        alone = jax.jit(train)
        together, info = jax.jit(jax.vmap(train))(grid)
        assert info.loss.shape == (3, 5)
        for place in range(3):
            np.testing.assert_allclose(together.items[place], alone(grid[place])[0].items, rtol=1e-2, atol=2e-3)
        fitted, history = fit(case.build(0.1), data, key=KEY, steps=5, progress=False)
        state, info = alone(grid[1])
        np.testing.assert_allclose(info.loss, history.loss, rtol=1e-4)
        np.testing.assert_allclose(state.items, fitted.items, rtol=1e-2, atol=1e-3)

    def test_rows_without_interactions_and_tiny_data(self, case):
        x = Interactions.from_coo([1, 1, 3], [0, 2, 2], [4.0, 3.0, 5.0], n_users=5, n_items=4)
        state, _ = fit(case.build(0.1), x, key=KEY, steps=3, progress=False)
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))
        assert not np.asarray(state.users[jnp.array([0, 2, 4])]).any()
        single = Interactions.from_coo([0], [0], [3.0])
        state, _ = fit(case.build(0.1), single, key=KEY, steps=3, progress=False)
        ids, _ = recommend(state, [0], 3)
        assert ids.tolist() == [[0, -1, -1]]

    def test_all_values_equal(self, case):
        users, items = np.indices((6, 5)).reshape(2, -1)
        state, history = fit(case.build(0.01), Interactions.from_coo(users, items, np.full(30, 2.0)), key=KEY, steps=5)
        assert np.isfinite(history.loss).all()
        if not case.implicit:
            np.testing.assert_allclose(predict(state, users, items), 2.0, atol=0.05)

    def test_fold_in_equals_the_solvers_own_row(self, case):
        """A newcomer with a user's history gets what a half sweep would give that user, alone or in a batch."""
        x, _ = planted()
        state, _ = fit(case.build(0.1), x, key=KEY, steps=4, progress=False)
        folded = fold_in(state, x)
        if "cholesky" in case.name:
            next_state, _ = case.build(0.1).step(KEY, state, x.to_device())
            np.testing.assert_allclose(folded, next_state.users, rtol=1e-4, atol=1e-5)
        one = Interactions.from_coo(
            np.zeros(len(x.items_of(7)), int),
            x.items_of(7),
            x.values[x.indptr[7] : x.indptr[8]],
            n_users=1,
            n_items=x.n_items,
        )
        np.testing.assert_allclose(fold_in(state, one)[0], folded[7], rtol=1e-4, atol=1e-5)


def test_implicit_loss_is_the_objective_over_all_pairs():
    x, _ = checkerboard()
    data = x.to_device()
    als = implicit_als(8, l2=0.02, unobserved_weight=0.3, l2_exponent=1.0, solver="cholesky")
    state, info = als.step(KEY, als.init(KEY, data), data)
    expected = naive.implicit_objective(state.users, state.items, x.to_scipy().toarray(), 0.02, 1.0, 0.3)
    assert float(info.loss) == pytest.approx(expected, rel=1e-5)


def test_alpha_is_the_confidence_of_hu_koren_volinsky_and_of_the_implicit_library():
    x, _ = planted(20, 15)
    r, data = x.to_scipy().toarray(), x.to_device()
    for offset in (1.0, 0.0):
        als = implicit_als(4, l2=0.5, alpha=3.0, confidence_offset=offset, solver="cholesky")
        start = als.init(KEY, data)
        state, info = als.step(KEY, start, data)
        y = np.asarray(start.items, np.float64)
        confidence = np.where(r != 0, offset + 3.0 * np.abs(r), 1.0)
        expected = [
            np.linalg.solve((y.T * c) @ y + 0.5 * np.eye(4), y.T @ (c * (row > 0)))
            for c, row in zip(confidence, r, strict=True)
        ]
        np.testing.assert_allclose(state.users, expected, rtol=1e-3, atol=1e-4)
        s = np.asarray(state.users, np.float64) @ np.asarray(state.items, np.float64).T
        norms = sum(float((np.asarray(side, np.float64) ** 2).sum()) for side in (state.users, state.items))
        assert float(info.loss) == pytest.approx((confidence * ((r > 0) - s) ** 2).sum() + 0.5 * norms, rel=1e-4)


def test_a_dislike_weighs_as_much_and_aims_at_zero():
    x = Interactions.from_coo([0, 0, 1, 1], [0, 1, 0, 1], [1.0, -5.0, 1.0, 1.0])
    state, _ = fit(implicit_als(4, l2=0.01, alpha=5.0), x, key=KEY, steps=10, progress=False)
    scores = np.asarray(state.users) @ np.asarray(state.items).T
    assert scores[0, 1] < 0.5 < scores[1, 1]


def test_explicit_normal_equations():
    """U = R V (V'V + l2 I)^-1 on a full matrix, nothing else."""
    r = np.array([[1, 2, 3], [2, 3, 4], [3, 4, 5]], np.float32)
    users, items = np.indices((3, 3)).reshape(2, 9)
    data = Interactions.from_coo(users, items, r.ravel()).to_device()
    als = explicit_als(2, l2=0.7, l2_exponent=0.0, biases=False, solver="cholesky")
    start = als.init(KEY, data)
    state, _ = als.step(KEY, start, data)
    v = np.asarray(start.items, np.float64)
    np.testing.assert_allclose(state.users, r @ v @ np.linalg.inv(v.T @ v + 0.7 * np.eye(2)), rtol=1e-4, atol=1e-6)


def test_rank_larger_than_either_side():
    x, matrix = planted(6, 5, rank=2, density=1.0)
    state, _ = fit(explicit_als(20, l2=1e-3), x, key=KEY, steps=20, progress=False)
    users, items = np.indices(matrix.shape).reshape(2, -1)
    np.testing.assert_allclose(predict(state, users, items), matrix.ravel(), atol=0.1)


def test_gaps_in_the_ids_are_rows_without_interactions():
    x = Interactions.from_coo([0, 50, 100], [7, 7, 900])
    state, _ = fit(implicit_als(4), x, key=KEY, steps=3, progress=False)
    assert state.users.shape == (101, 4)
    assert int(recommend(state, [50], 1, seen=x)[0][0, 0]) != 7


@pytest.mark.on_cpu
def test_fit_is_bitwise_reproducible():
    x, _ = planted()
    runs = [fit(implicit_als(8), x, key=KEY, steps=4, progress=False)[0] for _ in range(2)]
    for a, b in zip(jax.tree.leaves(runs[0]), jax.tree.leaves(runs[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fit_continues_from_a_state_and_leaves_it_whole():
    x, _ = planted()
    als = implicit_als(8, solver="cholesky")
    state, first = fit(als, x, key=KEY, steps=3, progress=False)
    before = np.asarray(state.items).copy()
    _, second = fit(als, x, key=KEY, steps=3, state=state, progress=False)
    np.testing.assert_array_equal(state.items, before)
    assert second.loss[0] < first.loss[-1]


def test_divergence_names_side_row_and_step():
    x, _ = planted(10, 8)
    data = x.to_device()
    values = data.by_user.values.at[int(data.by_user.indptr[3])].set(jnp.inf)
    broken = data._replace(by_user=data.by_user._replace(values=values))
    with pytest.raises(
        DivergenceError, match=r"explicit ALS, step 1, user side: row 3 .*interactions.*error\.state"
    ) as caught:
        fit(explicit_als(4, biases=False), broken, key=KEY, steps=3, progress=False)
    assert isinstance(caught.value.state, Factors)
    assert np.isfinite(np.asarray(caught.value.state.items)).all()


def test_early_stopping():
    x, _ = planted()
    als = implicit_als(8)
    _, history = fit(als, x, key=KEY, steps=50, tolerance=0.05, progress=False)
    assert history.stopped == "tolerance"
    assert len(history.loss) < 50
    scores = iter([1.0, 3.0, 2.0, 2.5, 2.9, 2.8])
    states = []
    best, history = fit(
        als,
        x,
        key=KEY,
        steps=50,
        validate=lambda s: states.append(np.asarray(s.items)) or next(scores),
        patience=3,
        progress=False,
    )
    assert history.stopped == "patience"
    assert len(history.loss) == 5
    np.testing.assert_array_equal(best.items, states[1])
    _, history = fit(als, x, key=KEY, steps=50, callback=lambda step, state, info: step == 2, progress=False)
    assert history.stopped == "callback"
    assert len(history.loss) == 2


def test_progress_shows_loss_and_speed(capsys):
    x, _ = planted()
    fit(implicit_als(8), x, key=KEY, steps=2, progress=True)
    shown = capsys.readouterr().err
    assert "implicit ALS" in shown
    assert "interactions/s" in shown


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: implicit_als(0), "rank=0"),
        (lambda: implicit_als(4, l2=-0.1), "l2=-0.1"),
        (lambda: explicit_als(4, l2=-1.0), "l2=-1.0"),
        (lambda: implicit_als(4, l2=float("nan")), "l2=nan"),
        (lambda: implicit_als(4, unobserved_weight=-1), "unobserved_weight=-1"),
        (lambda: implicit_als(4, alpha=-1.0), "alpha=-1.0"),
        (lambda: implicit_als(4, table_dtype=jnp.int8), "table_dtype"),
        (lambda: fit(implicit_als(4), checkerboard()[0], key=KEY, steps=0), "steps=0"),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_fit_refuses_what_is_no_interactions():
    with pytest.raises(TypeError, match=r"fit: interactions are a numpy ndarray .* Interactions.from_coo"):
        unwrap(fit)(implicit_als(2), np.eye(3), key=KEY, steps=1)
