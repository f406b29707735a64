"""Bayesian matrix factorization: each draw against the distribution it is said to come from, and the whole on data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.engine.data import Interactions
from affinax.engine.errors import DivergenceError
from affinax.engine.factorization import bayesian_mf, explicit_als, fit, gibbs
from affinax.engine.retrieval import fold_in, predict, recommend, similar_items, with_history
from affinax.kernels.csr import CSR

from .test_factorization import planted

pytestmark = pytest.mark.usefixtures("strict_dtypes")
KEY = jax.random.key(0)
PRECISION = np.array([[2.0, 0.6, 0.1], [0.6, 1.5, -0.4], [0.1, -0.4, 0.8]])


def rows_of(dense):
    r, c = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(dense, axis=1))])
    arrays = (indptr, np.int32), (c, np.int32), (dense[r, c], np.float32)
    return CSR(*(jnp.asarray(a, d) for a, d in arrays))


def assert_drawn_from(draws, mean, covariance):
    """First and second moments of `[n, d]` draws, within five standard errors."""
    draws, n = np.asarray(draws, np.float64), len(draws)
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(draws.mean(0) - mean) < 5 * spread / np.sqrt(n)).all()
    bound = 5 * np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / n)
    assert (np.abs(np.cov(draws.T) - covariance) < bound).all()


@pytest.mark.parametrize("implementation", ["numba", "reference"])
def test_rows_are_drawn_from_their_posterior(implementation):
    """Twenty thousand rows of the same ratings, and as many of none, against the normal equations in float64."""
    n, rng = 20_000, np.random.default_rng(0)
    other, feedback = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    ratings, mean, noise = np.array([0.5, -1.0, 2.0]), np.array([0.3, -0.2, 0.4]), 1.7
    indptr = jnp.concatenate([3 * jnp.arange(n + 1, dtype=jnp.int32), jnp.full(n, 3 * n, jnp.int32)])
    rows = CSR(indptr, jnp.tile(jnp.array([0, 2, 3], jnp.int32), n), jnp.ones(1))
    prior = gibbs.RowPrior(*(jnp.asarray(a, jnp.float32) for a in (mean, PRECISION, feedback, 1.0)))
    each = jnp.tile(jnp.asarray(ratings, jnp.float32), n)
    other_rows, noise_precision = jnp.asarray(other, jnp.float32), jnp.float32(noise)
    system = gibbs.RowSystem(rows, each, other_rows, prior, noise_precision, implementation)
    drawn = np.asarray(gibbs.draw_rows(KEY, system))
    table = np.column_stack([other[[0, 2, 3], :2], np.ones(3)])
    of_prior = mean + feedback[[0, 2, 3]].sum(0) / np.sqrt(3)
    posterior = PRECISION + noise * table.T @ table
    right = PRECISION @ of_prior + noise * table.T @ (ratings - other[[0, 2, 3], 2])
    assert_drawn_from(drawn[:n], np.linalg.solve(posterior, right), np.linalg.inv(posterior))
    assert_drawn_from(drawn[n:], mean, np.linalg.inv(PRECISION))


def test_feedback_is_drawn_from_its_posterior():
    rng = np.random.default_rng(1)
    dense = (rng.random((7, 4)) < 0.6).astype(float)
    dense[2], x, strength = 0, rng.normal(size=(7, 3)), 1.3
    factor = jnp.asarray(np.linalg.cholesky(PRECISION), jnp.float32)
    arguments = jnp.asarray(x, jnp.float32), factor, jnp.float32(strength), rows_of(dense), rows_of(dense.T)
    draw = jax.jit(jax.vmap(lambda key: gibbs.draw_feedback(key, *arguments, "reference")))
    drawn = draw(jax.random.split(KEY, 5000))
    f = dense / np.sqrt(np.maximum(dense.sum(1, keepdims=True), 1))
    inverse = np.linalg.inv(f.T @ f + strength * np.eye(4))
    covariance = np.kron(inverse, np.linalg.inv(PRECISION))
    assert_drawn_from(drawn.reshape(5000, -1), (inverse @ f.T @ x).ravel(), covariance)


def test_mean_and_precision_are_drawn_from_a_normal_wishart():
    """The mean of the precisions is their freedom times their scale; means are normal about the shrunk average."""
    rng = np.random.default_rng(2)
    x, centred, n = rng.normal(size=(9, 2)) + 1, rng.normal(size=(4, 2)), 20_000
    arguments = jnp.asarray(x, jnp.float32), jnp.asarray(centred, jnp.float32)
    shapes = gibbs.prior_shapes(9, 4, 2)[:-1]

    @jax.jit
    @jax.vmap
    def draw(key):
        return gibbs.draw_normal_wishart(key, jax.random.gamma(jax.random.fold_in(key, 1), shapes), *arguments)

    means, precisions = (np.asarray(a, np.float64) for a in draw(jax.random.split(KEY, n)))
    average = x.mean(0)
    scatter = (x - average).T @ (x - average) + centred.T @ centred + 18 / 11 * np.outer(average, average)
    scale, freedom = np.linalg.inv(scatter + np.eye(2) / 2), 2 + 9 + 4
    np.testing.assert_allclose(precisions.mean(0), freedom * scale, rtol=0.03, atol=0.01)
    variance = freedom * (scale**2 + np.outer(np.diag(scale), np.diag(scale)))
    np.testing.assert_allclose(precisions.var(0), variance, rtol=0.08)
    factors = np.linalg.cholesky(precisions)
    whitened = np.einsum("nji,nj->ni", factors, means - 9 / 11 * average) * np.sqrt(11)
    assert_drawn_from(whitened, np.zeros(2), np.eye(2))


def test_beats_the_best_single_model_on_what_it_has_not_seen():
    """Ratings of rank 3 with noise, of which a third is known: the mean of draws nears the noise, and beats ALS."""
    x, matrix = planted(120, 80, density=0.35)
    noisy = x.with_values(x.values + 0.5 * np.random.default_rng(3).normal(size=x.nnz).astype(np.float32))
    hidden = np.nonzero(x.to_scipy().toarray() == 0)

    def error(model):
        return np.sqrt(np.mean((np.asarray(predict(model, *hidden)) - matrix[hidden]) ** 2))

    model, history = fit(bayesian_mf(6, samples=60), noisy, key=KEY, steps=120, progress=False)
    single = min(
        error(fit(explicit_als(6, l2=l2), noisy, key=KEY, steps=30, progress=False)[0]) for l2 in (0.03, 0.1, 0.3)
    )
    assert error(model) < 0.95 * single
    assert int(model.taken) == 120
    assert history.loss[-1] / x.nnz == pytest.approx(0.25, rel=0.2)
    assert float(model.scale**2 / model.chain.noise_precision) == pytest.approx(0.25, rel=0.2)


def test_the_model_is_the_mean_of_its_last_draws():
    x, _ = planted()
    kept, users, items = [], *np.indices(x.shape).reshape(2, -1)

    def check(step, state, _):
        slot = (step - 1) % 4
        u = np.asarray(state.users, np.float64)[users, 3 * slot : 3 * slot + 3]
        y, own = np.asarray(state.items, np.float64)[items, 3 * slot : 3 * slot + 3], np.asarray(state.chain.items)
        np.testing.assert_array_equal(own[:, :3], state.items[:, 3 * slot : 3 * slot + 3])
        biases = np.asarray(state.user_bias)[users, slot] + np.asarray(state.item_bias)[items, slot]
        kept.append(float(state.mean) + float(state.scale) * ((u * y).sum(1) + biases))
        np.testing.assert_allclose(predict(state, users, items), np.mean(kept[-4:], axis=0), rtol=1e-4, atol=1e-4)

    state, _ = fit(bayesian_mf(3, samples=4), x, key=KEY, steps=6, callback=check, progress=False)
    expected = np.mean(kept[-4:], axis=0)
    assert len(kept) == 6
    ids, scores = recommend(state, [7], 3)
    best = np.argsort(-expected.reshape(x.shape)[7])[:3]
    np.testing.assert_array_equal(ids[0], best)
    np.testing.assert_allclose(scores[0], expected.reshape(x.shape)[7, best], rtol=1e-4)
    assert similar_items(state, [0], 2)[0].shape == (1, 2)


def test_newcomers_with_the_histories_of_users_get_their_rows():
    x, _ = planted()
    x = x.select(x.users != 3)
    for steps in (2, 7):
        state, _ = fit(bayesian_mf(3, samples=4), x, key=KEY, steps=steps, progress=False)
        newcomers = with_history(state, x)
        np.testing.assert_allclose(newcomers.users, state.users, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(newcomers.user_bias, state.user_bias, rtol=1e-3, atol=1e-4)
    one = x.select(x.users == 8)
    alone = Interactions.from_coo(np.zeros(one.nnz, int), one.items, one.values, n_items=x.n_items)
    np.testing.assert_allclose(fold_in(state, alone)[0], state.users[8], rtol=1e-3, atol=1e-4)
    nobody = np.asarray(state.user_priors.mean)
    np.testing.assert_allclose(np.asarray(state.users[3]).reshape(4, 3), nobody[:, :3], rtol=1e-5)
    with pytest.raises(ValueError, match="folds in users only"):
        fold_in(state, x, side="items")
    with pytest.raises(ValueError, match="folds in by one implementation, not by implementation='reference'"):
        fold_in(state, x, implementation="reference")


def test_the_unit_of_ratings_does_not_matter():
    x, _ = planted()
    models = [
        fit(bayesian_mf(3, samples=4), x.with_values(values), key=KEY, steps=5, progress=False)[0]
        for values in (x.values, 10 * x.values + 20)
    ]
    one, other = (np.asarray(predict(model, x.users, x.items)) for model in models)
    np.testing.assert_allclose(other, 10 * one + 20, rtol=1e-2)


def test_keys_decide_and_a_vmap_over_them_draws_at_once():
    x, _ = planted()
    data, algorithm = x.to_device(), bayesian_mf(3, samples=4)

    def train(key):
        state = algorithm.init(key, data)
        return jax.lax.scan(lambda s, k: algorithm.step(k, s, data), state, jax.random.split(key, 3))

    keys = jax.random.split(KEY, 2)
    one = jax.jit(train)
    alone, info = one(keys[0])
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(one(keys[0])[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    together, infos = jax.jit(jax.vmap(train))(keys)
    np.testing.assert_allclose(infos.loss[0], info.loss, rtol=2e-2)
    np.testing.assert_allclose(together.items[0], alone.items, rtol=0.1, atol=0.05)
    assert not np.allclose(together.items[1], alone.items, atol=0.05)


def test_tiny_data_and_equal_values():
    for x in (
        Interactions.from_coo([0], [0], [3.0]),
        Interactions.from_coo([1, 1, 3], [0, 2, 2], [4.0, 4.0, 4.0], n_users=5, n_items=4),
    ):
        state, history = fit(bayesian_mf(8, samples=30), x, key=KEY, steps=60, progress=False)
        assert np.isfinite(history.loss).all()
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))
        assert float(predict(state, x.users[:1], x.items[:1])[0]) == pytest.approx(x.values[0], abs=0.5)


def test_wrong_input_is_refused():
    for parameters, message in (((0, 4), "rank=0"), ((4, 0), "samples=0")):
        with pytest.raises(ValueError, match=message):
            bayesian_mf(parameters[0], samples=parameters[1])
    data = planted()[0].to_device()
    broken = data._replace(by_user=data.by_user._replace(values=data.by_user.values.at[4].set(jnp.inf)))
    with pytest.raises(DivergenceError, match="Bayesian MF, step 1"):
        fit(bayesian_mf(3, samples=4), broken, key=KEY, steps=2, progress=False)
