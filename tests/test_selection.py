"""The choice of algorithm and parameters: the same trials as one by one, early stopping, divergence, and refitting."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax import models
from affinax.engine.data import InteractionError, Interactions, Sequences
from affinax.engine.errors import DivergenceError
from affinax.engine.evaluation import evaluate, evaluate_ratings
from affinax.engine.factorization import Algorithm, Info, biased_mf, bpr, explicit_als, fit, implicit_als
from affinax.engine.neighbors import ease, popularity, random
from affinax.engine.retrieval import recommend
from affinax.engine.training import select, trials

from .test_factorization import checkerboard, planted

KEY = jax.random.key(3)
TOGETHER = 1 << 30  # bytes, which hold all trials of a grid


@pytest.fixture(scope="module")
def parts():
    return checkerboard()[0].split("random", test_fraction=0.3)


@pytest.fixture(scope="module")
def rated():
    return planted(density=0.8)[0].split("random", test_fraction=0.3)


def alone(build, point, train, validation, steps):
    """Score after each step of one trial on its own."""

    def ndcg(state):
        return evaluate(state, validation, train=train, k=5, names=("ndcg",)).means["ndcg_at_5"]

    _, history = fit(build(**point), train, key=KEY, steps=steps, validate=ndcg, patience=steps, progress=False)
    return history.validation


def test_trials_together_find_what_each_finds_alone(parts):
    als = functools.partial(implicit_als, solver="cholesky")
    grid = {"rank": [2, 4], "l2": [1e-3, 0.1, 30.0], "unobserved_weight": [0.1]}
    options = {"key": KEY, "steps": 6, "patience": 6, "memory": TOGETHER, "progress": False}
    found = select({"als": als}, {"als": grid}, *parts, "ndcg_at_5", **options)
    assert len(found.trials) == 6
    assert {trial.outcome for trial in found.trials} == {"steps"}
    for trial in found.trials:
        scores = alone(als, trial.parameters, *parts, steps=6)
        assert trial.score == pytest.approx(scores.max(), abs=0.02)
        assert trial.score == pytest.approx(scores[trial.step - 1], abs=0.02)
    scores = [trial.score for trial in found.trials]
    assert scores == sorted(scores, reverse=True)
    assert found.best.parameters["l2"] < 1


def test_numbers_train_in_one_compilation_and_shapes_in_turn(parts):
    built = []

    @functools.wraps(implicit_als)
    def counted(**parameters):
        built.append(parameters)
        return implicit_als(**parameters)

    grid = {"rank": [2, 3], "l2": [0.01, 0.1], "solver": ["cg"], "unobserved_weight": [0.1, 0.3]}
    data = parts[0].to_device()
    points = [
        {"rank": r, "l2": l2, "solver": "cg", "unobserved_weight": w}
        for r in (2, 3)
        for l2 in (0.01, 0.1)
        for w in (0.1, 0.3)
    ]
    groups = trials.groups(counted, points, data)
    assert [traced for traced, _ in groups] == [["l2", "unobserved_weight"]] * 2
    assert [len(group) for _, group in groups] == [4, 4]
    built.clear()
    found = select({"als": counted}, {"als": grid}, *parts, key=KEY, steps=2, memory=TOGETHER, progress=False)
    assert len(found.trials) == 8
    under_vmap = [point for point in built if isinstance(point["l2"], jax.core.Tracer)]
    # Once to try each of three numbers, and in each of two groups for its shape, its start and its step.
    assert len(under_vmap) <= 3 + 2 * 3
    assert sorted(str(trial.parameters) for trial in found.trials) == sorted(map(str, points))


def test_memory_bounds_how_many_train_together(parts):
    grid = {"als": {"rank": [3], "l2": [1e-3, 1e-2, 1e-1, 1.0, 10.0]}}
    options = {"key": KEY, "steps": 3, "progress": False}
    whole = select({"als": implicit_als}, grid, *parts, memory=TOGETHER, **options)
    default = select({"als": implicit_als}, grid, *parts, **options)
    few = select({"als": implicit_als}, grid, *parts, memory=4_000, **options)
    for other in (few, default):
        for a, b in zip(whole.trials, other.trials, strict=True):
            assert (a.parameters, a.step) == (b.parameters, b.step)
            assert a.score == pytest.approx(b.score, abs=1e-6)


def test_each_trial_stops_by_its_own_patience(parts):
    """An algorithm whose score is decided by its parameter: it rises for `peak` steps and falls then."""

    def rising(peak):
        def init(key, data):
            return jnp.float32(0)

        def step(key, state, data):
            return state + 1, Info(jnp.float32(1) + 0 * peak, jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32))

        return Algorithm(init, step)

    scores = lambda model: -abs(float(model) - 3)  # noqa: E731
    shared = trials.Search(scores, 1.0, KEY, 2, 1 << 20, trials.Progress("", 1, False))
    data = parts[0].to_device()
    (found,) = trials.try_together("rising", rising, ["peak"], [{"peak": 1.0}], 50, data, shared)
    assert (found.step, found.outcome, found.score) == (3, "patience", 0.0)
    (found,) = trials.try_together("rising", rising, ["peak"], [{"peak": 1.0}], 4, data, shared)
    assert (found.step, found.outcome) == (3, "steps")


def test_a_trial_that_diverges_is_reported_and_ends_nothing(rated):
    grid = {"mf": {"rank": [3], "learning_rate": [1e30, 0.02, 0.05]}}
    found = select({"mf": biased_mf}, grid, *rated, "rmse", key=KEY, steps=8, memory=TOGETHER, progress=False)
    assert [trial.outcome == "diverged" for trial in found.trials] == [False, False, True]
    last = found.table.row(-1, named=True)
    assert last["learning_rate"] == 1e30
    assert last["rmse"] is None
    assert last["step"] >= 1
    with pytest.raises(DivergenceError, match="all 1 trials diverged, such as Trial"):
        select({"mf": biased_mf}, {"mf": {"rank": [3], "learning_rate": [1e30]}}, *rated, "rmse", key=KEY, steps=8)


def test_a_closed_form_that_diverges_ends_nothing(parts):
    def brittle(interactions, l2):
        if l2 == 0:
            raise DivergenceError("no")
        return ease(interactions, l2=l2)

    found = select({"brittle": brittle}, {"brittle": {"l2": [0.0, 5.0]}}, *parts, key=KEY, progress=False)
    assert [trial.outcome for trial in found.trials] == ["closed form", "diverged"]


def test_less_error_is_better(rated):
    grid = {"als": {"rank": [4], "l2": [1e-2, 5.0]}, "mf": {"rank": [4], "learning_rate": [0.01, 0.05]}}
    for metric in ("rmse", "mae"):
        found = select({"als": explicit_als, "mf": biased_mf}, grid, *rated, metric, key=KEY, steps=15, progress=False)
        scores = [trial.score for trial in found.trials]
        assert scores == sorted(scores)
        assert found.best.algorithm == "als"
        assert found.best.parameters["l2"] == 1e-2


def test_algorithms_and_closed_forms_side_by_side(parts):
    algorithms = {"als": implicit_als, "ease": ease, "popularity": popularity, "random": random}
    grid = {"als": {"rank": [2], "l2": [0.01]}, "ease": {"l2": [1.0, 1e6]}}
    found = select(algorithms, grid, *parts, "recall_at_3", key=KEY, steps=10, progress=False)
    table = found.table
    assert table.columns == ["algorithm", "rank", "l2", "recall_at_3", "step", "seconds", "outcome"]
    assert sorted(table["algorithm"]) == ["als", "ease", "ease", "popularity", "random"]
    assert table["recall_at_3"].is_sorted(descending=True)
    by_name = {trial.algorithm: trial for trial in found.trials}
    assert by_name["popularity"].outcome == "closed form"
    assert by_name["popularity"].step == 0
    expected = evaluate(popularity(parts[0]), parts[1], train=parts[0], k=3).means["recall_at_3"]
    assert by_name["popularity"].score == expected
    assert (table["seconds"] > 0).all()
    assert found.best.algorithm in ("als", "ease")


def test_what_is_trained_by_batches(parts):
    from affinax import models

    def machine(learning_rate):
        kind = models.FactorizationMachine
        return models.pair_ranker(kind, width=4, batch_size=64, learning_rate=learning_rate)

    train, validation = parts
    grid = {"machine": {"learning_rate": [1e-6, 0.05, 1e25]}}
    found = select({"machine": machine}, grid, train, validation, key=KEY, steps=15)
    assert [trial.parameters["learning_rate"] for trial in found.trials] == [0.05, 1e-6, 1e25]
    assert found.trials[-1].outcome == "diverged"
    assert 1 <= found.best.step <= 15
    assert found.refit().n_users == train.n_users


def test_sequences_and_settings_of_a_network():
    rng = np.random.default_rng(0)
    users, times = np.repeat(np.arange(30), 6), np.tile(np.arange(6), 30)
    x = Sequences.from_events(users, (rng.integers(0, 9, 30)[:, None] + np.arange(6)).ravel() % 9, times)
    train, validation = x.leave_last()
    build = functools.partial(models.sequence_retriever, models.SASRec, width=8, length=6, batch_size=4)
    grid = {"sasrec": {"learning_rate": [1e-5, 0.01], "dropout": [0.0]}}
    found = select({"sasrec": build}, grid, train, validation, key=jax.random.key(0), steps=6, progress=False)
    assert found.best.parameters == {"learning_rate": 0.01, "dropout": 0.0}
    refitted = found.refit(progress=False)
    assert refitted.history.nnz == len(x)
    np.testing.assert_array_equal(refitted.history.indices, x.items)


def test_the_winner_is_refitted_on_both_parts(parts, rated):
    found = select(
        {"als": implicit_als}, {"als": {"rank": [2], "l2": [0.01]}}, *parts, key=KEY, steps=5, progress=False
    )
    whole = checkerboard()[0]
    expected, history = fit(implicit_als(2, l2=0.01), whole, key=KEY, steps=found.best.step, progress=False)
    model = found.refit(progress=False)
    assert len(history.loss) == found.best.step
    np.testing.assert_array_equal(model.items, expected.items)
    other = found.refit(key=jax.random.key(9), progress=False)
    assert not np.array_equal(other.items, model.items)
    found = select({"ease": ease}, {"ease": {"l2": [5.0]}}, *parts, key=KEY, progress=False)
    np.testing.assert_array_equal(found.refit().weights, ease(whole, l2=5.0).weights)
    found = select({"als": explicit_als}, {"als": {"rank": [4]}}, *rated, "rmse", key=KEY, steps=5, progress=False)
    x = planted(density=0.8)[0]
    assert evaluate_ratings(found.refit(progress=False), x)["rmse"] < 0.5 * x.values.std()


def test_the_key_decides(parts):
    grid = {"bpr": {"rank": [4], "learning_rate": [0.05, 0.1]}}

    def scores(seed):
        found = select({"bpr": bpr}, grid, *parts, key=jax.random.key(seed), steps=3, progress=False)
        return [(trial.parameters, trial.score, trial.step) for trial in found.trials]

    assert scores(0) == scores(0)
    assert scores(0) != scores(1)


def test_it_shows_how_far_it_is(parts, capsys):
    select({"als": implicit_als}, {"als": {"rank": [2], "l2": [0.1, 1.0]}}, *parts, key=KEY, steps=2, progress=True)
    shown = capsys.readouterr().err
    assert "selection" in shown
    assert "2/2" in shown


def test_columns_of_mixed_values(parts):
    grid = {"als": {"rank": [2], "alpha": [None, 1], "table_dtype": [jnp.float32], "l2": [1, 0.5]}}
    table = select({"als": implicit_als}, grid, *parts, key=KEY, steps=1, progress=False).table
    assert table["alpha"].null_count() == 2
    assert table["table_dtype"][0].count("float32") == 1
    assert sorted(table["l2"]) == [0.5, 0.5, 1.0, 1.0]


ALS = {"als": implicit_als}


@pytest.mark.parametrize(
    ("algorithms", "grid", "options", "message"),
    [
        (ALS, {"als": {"rank": [2]}}, {"metric": "ndcg"}, r"metric='ndcg' must be one of .*'ndcg_at_10'.*'rmse'"),
        (ALS, {"als": {"rank": [2]}}, {"metric": "auc_at_5"}, "metric='auc_at_5' must be one of"),
        (ALS, {"als": {"rank": [2]}}, {"metric": "ndcg_at_0"}, "metric='ndcg_at_0' must be one of"),
        (ALS, {"als": {"rank": [2], "l2": [-1.0]}}, {}, "l2=-1.0 must be finite and at least 0"),
        (ALS, {"als": {"rank": []}}, {}, r"the grid of als: rank=\[\] must be a sequence of one value or more"),
        (ALS, {"als": {"solver": "cg"}}, {}, "solver='cg' must be a sequence"),
        (ALS, {"als": {"ranks": [2]}}, {}, r"the grid of als: it has no parameter 'ranks'; it has \['alpha'"),
        (ALS, {"bpr": {"rank": [2]}}, {}, r"there is a grid for \['bpr'\]; the algorithms to try are \['als'\]"),
        ({}, {}, {}, r"the algorithms to try are \[\]"),
        (ALS, {}, {}, r"the grid of als: it needs \['rank'\], which have no default"),
        (ALS, {"als": {"rank": [2]}}, {"steps": 0}, "steps=0"),
        (
            ALS,
            {"als": {"rank": [2]}},
            {"steps": {"mf": 3}},
            r"steps are for \['mf'\]; the algorithms that take .*'als'",
        ),
        (ALS, {"als": {"rank": [2]}}, {"patience": 0}, "patience=0"),
        (ALS, {"als": {"rank": [2]}}, {"metric": "rmse"}, "rmse needs values, and the validation part has none"),
    ],
)
def test_wrong_questions_are_refused(parts, algorithms, grid, options, message):
    with pytest.raises(ValueError, match=message):
        select(algorithms, grid, *parts, **({"key": KEY} | options))


def test_parts_of_different_shapes_are_refused(parts):
    other = Interactions.from_coo([0], [0])
    with pytest.raises(InteractionError, match="must be equal: split them off the same data"):
        select(ALS, {"als": {"rank": [2]}}, parts[0], other, key=KEY)


def test_on_films(movielens_100k):
    """A validation part chooses l2 and rank; the choice holds on a test part that the search never saw."""
    rest, test = movielens_100k.with_values(None).split("random", test_fraction=0.2)
    train, validation = rest.split("random", test_fraction=0.2, seed=1)
    grid = {"als": {"rank": [8], "l2": [1e-4, 3e-3, 1.0], "unobserved_weight": [0.1]}}
    found = select(ALS, grid, train, validation, key=KEY, steps=8, patience=2, progress=False)
    assert found.best.parameters["l2"] == 3e-3
    assert all(math.isfinite(trial.score) for trial in found.trials)
    model = found.refit(progress=False)
    ndcg = evaluate(model, test, train=rest, names=("ndcg",)).means["ndcg_at_10"]
    worse = fit(implicit_als(8, l2=1.0), rest, key=KEY, steps=8, progress=False)[0]
    assert ndcg > 1.2 * evaluate(worse, test, train=rest, names=("ndcg",)).means["ndcg_at_10"]
    assert recommend(model, [0], 3)[0].shape == (1, 3)
