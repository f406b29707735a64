"""Gradient descent by batches: against the kernel, JAX's derivative of the whole tables, and optax row by row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affinax import saved_models
from affinax.engine.factorization import biased_mf, bpr, fit, logistic_mf, minibatch, softmax_mf, svd_plus_plus
from affinax.engine.retrieval import predict, recommend
from affinax.kernels import sampling, sgd

from .test_factorization import checkerboard, planted
from .test_sgd import rows, tables  # noqa: F401

KEY = jax.random.key(0)
each_optimizer = pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
RULES = {"sgd": optax.sgd, "adagrad": optax.adagrad, "adam": optax.adam}


def slots_of(t, optimizer):
    by_user, by_item = (t.users, t.user_bias), (t.items, t.item_bias)
    return minibatch.start_slots(by_user, optimizer), minibatch.start_slots(by_item, optimizer)


@pytest.mark.parametrize(("loss", "n_negatives"), [("squared", 0), ("bpr", 1), ("softmax", 3)])
@pytest.mark.parametrize("biases", [True, False])
def test_batches_of_one_are_the_steps_of_the_kernel(rows, loss, n_negatives, biases):  # noqa: F811
    order = sampling.permutation(KEY, rows.nnz)
    rng = np.random.default_rng(2)
    # No item twice: the kernel moves it twice, a batch once by the sum.
    negatives = rng.permuted(np.tile(np.arange(-1, 12), (order.shape[0], 1)), axis=1)[:, :n_negatives]
    negatives = jnp.where(negatives == rows.indices[order][:, None], -1, jnp.asarray(negatives, jnp.int32))
    options = {"loss": loss, "learning_rate": 0.1, "l2": 0.05, "mean": 0.4, "biases": biases}
    start = tables(5)
    expected, whole = sgd.sweep(start, rows, order, negatives, **options)
    found, _, total = minibatch.sweep(
        start, slots_of(start, "sgd"), rows, order, negatives, batch_size=1, optimizer="sgd", **options
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total, whole, rtol=1e-5)


@each_optimizer
@pytest.mark.parametrize("loss", ["squared", "logistic", "bpr", "softmax"])
def test_a_batch_is_one_step_of_optax_down_the_whole_gradient(rows, loss, optimizer):  # noqa: F811
    """Of whole tables, whose other rows have no gradient; 20 entries in a batch of 32, users and items repeated."""
    order = sampling.permutation(KEY, rows.nnz)[:20]
    rng = np.random.default_rng(2)
    negatives = rng.integers(-1, 12, (20, 0 if loss == "squared" else 3)).astype(np.int32)
    start, l2, mean, rate = tables(5), 0.05, 0.4, 0.1
    users = np.repeat(np.arange(len(rows.indptr) - 1), np.diff(rows.indptr))[order]
    items, values = rows.indices[order], rows.values[order]
    met, own = negatives >= 0, loss in ("squared", "logistic")
    # How often rows are held down: by each example that they are in, of a pair or of one item.
    pairs = met.sum(axis=1)
    of_item = pairs if loss == "bpr" else np.ones(20)
    of_user = of_item + pairs if loss == "logistic" else of_item

    def objective(t):
        def score(j):
            products = jnp.einsum("nf,nmf->nm", t.users[users], t.items[j], precision="highest")
            return products + t.item_bias[j] + own * (t.user_bias[users][:, None] + mean)

        def squares(j):
            return jnp.sum(t.items[j] ** 2, axis=-1) + t.item_bias[j] ** 2

        first, others = score(items[:, None]), score(negatives)
        of_users = jnp.sum(t.users[users] ** 2, axis=1) + own * t.user_bias[users] ** 2
        total = of_user @ of_users + of_item @ squares(items) + jnp.sum(squares(negatives), where=met)
        total *= 0.5 * l2
        if loss == "softmax":
            scores = jnp.concatenate([first, jnp.where(met, others, -jnp.inf)], axis=1)
            return total + jnp.sum(jax.nn.logsumexp(scores, axis=1) - first[:, 0])
        if loss == "squared":
            return total + 0.5 * jnp.sum((values - first[:, 0]) ** 2)
        if loss == "logistic":
            return total + jnp.sum(jax.nn.softplus(-first)) + jnp.sum(jax.nn.softplus(others), where=met)
        return total + jnp.sum(jax.nn.softplus(others - first), where=met)

    rule = RULES[optimizer](rate)
    change, _ = rule.update(jax.jit(jax.grad(objective))(start), rule.init(start), start)
    expected = optax.apply_updates(start, change)
    found, _, _ = minibatch.sweep(
        start,
        slots_of(start, optimizer),
        rows,
        order,
        jnp.asarray(negatives),
        loss=loss,
        batch_size=32,
        optimizer=optimizer,
        learning_rate=rate,
        l2=l2,
        mean=mean,
        biases=True,
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@each_optimizer
def test_ratings_recover_what_was_planted(optimizer):
    x, matrix = planted(density=0.8)
    rate = {"sgd": 0.03, "adagrad": 0.2, "adam": 0.02}[optimizer]
    mf = biased_mf(4, learning_rate=rate, l2=0.005, batch_size=64, optimizer=optimizer)
    state, _ = fit(mf, x, key=KEY, steps=150, progress=False)
    users, items = np.indices(matrix.shape).reshape(2, -1)
    error = np.asarray(predict(state, users, items)) - matrix.ravel()
    assert np.sqrt(np.mean(error**2)) < 0.25 * matrix.std()


@pytest.mark.parametrize("build", [bpr, logistic_mf, softmax_mf])
def test_rankers_recover_what_was_planted(build):
    x, hidden = checkerboard()
    algorithm = build(4, learning_rate=0.1, l2=1e-3, negatives=3, batch_size=64, optimizer="adagrad")
    state, history = fit(algorithm, x, key=KEY, steps=60, progress=False)
    assert history.loss[-1] < 0.5 * history.loss[0]
    ids = np.asarray(recommend(state, np.arange(x.n_users), 1, seen=x)[0])[:, 0]
    some = hidden.reshape(x.shape).any(1)
    assert hidden.reshape(x.shape)[np.arange(x.n_users), ids][some].mean() > 0.85  # a quarter by chance


def test_a_model_keeps_what_its_optimizer_remembers():
    x, _ = planted()
    algorithm = biased_mf(4, batch_size=64, optimizer="adam")
    data = x.to_device()
    state, _ = fit(algorithm, data, key=KEY, steps=2, progress=False)
    arrays, described = saved_models.flatten(state)
    restored = saved_models.restore(described, arrays)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    after, again = (algorithm.step(KEY, s, data)[0] for s in (state, restored))
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer='adam' moves rows by batches and needs a batch_size"),
        ({"batch_size": 0}, "batch_size=0 must be finite and at least 1"),
        ({"batch_size": 8, "hogwild": True}, "batch_size=8 and hogwild=True exclude each other"),
    ],
)
@pytest.mark.parametrize("build", [biased_mf, bpr, logistic_mf, softmax_mf])
def test_what_cannot_be_is_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(4, **options)


def test_svd_plus_plus_of_no_users_at_once_is_refused():
    with pytest.raises(ValueError, match="batch_size=0 must be finite and at least 1"):
        svd_plus_plus(4, batch_size=0)


def test_a_state_without_slots_is_refused():
    data = planted()[0].to_device()
    state = biased_mf(4).init(KEY, data)
    with pytest.raises(ValueError, match="lacks what batches remember"):
        biased_mf(4, batch_size=64).step(KEY, state, data)
