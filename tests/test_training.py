"""Gradient descent as an algorithm: against optax by hand, in parts, in bfloat16, resumed, and when it breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from affinax.engine.data import Interactions
from affinax.engine.errors import CheckpointError, DivergenceError, InteractionError
from affinax.engine.factorization import Algorithm, fit, implicit_als
from affinax.engine.factorization.algorithm import Info
from affinax.engine.factorization.stepping import Steps
from affinax.engine.prefetch import Prefetch
from affinax.engine.training import (
    Batches,
    Embedded,
    Rows,
    example_batches,
    gradient,
    latest_step,
    losses,
    pair_batches,
)
from affinax.engine.training.gradient_descent import gradient_step, start_training
from affinax.engine.training.histories import earlier_items, last_items, other_items
from affinax.models import MLP

from .sources import ROOT

KEY = jax.random.key(3)
SEED = np.array([1, 2], np.uint32)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
DATA = {"x": X, "y": (X @ np.array([1.0, -2.0, 0.5]) + 0.3).astype(np.float32)}
START = {"w": jnp.zeros(3), "b": jnp.zeros(())}


def line(p, batch, key):
    return losses.squared_error(batch["x"].astype(p["w"].dtype) @ p["w"] + p["b"], batch["y"])


def descent(batch_size=8, optimizer=None, **options):
    return gradient(line, optimizer or optax.adam(0.05), example_batches(batch_size), init=START, **options)


def trained(algorithm=None, **options):
    return fit(algorithm or descent(), DATA, **{"key": KEY, "steps": 12} | options)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


# Batches


def test_every_example_comes_once_in_an_epoch():
    batches = example_batches(7)(DATA, SEED)
    rows = np.concatenate([batches.make(step)["y"] for step in range(1, 41)])  # 7 epochs of 40
    for epoch in range(7):
        np.testing.assert_array_equal(np.sort(rows[40 * epoch : 40 * (epoch + 1)]), np.sort(DATA["y"]))
    assert not np.array_equal(rows[:40], rows[40:80])
    assert batches.steps(2) == 12


def test_a_batch_depends_on_nothing_but_seed_and_number():
    one, other = example_batches(7)(DATA, SEED), example_batches(7)(DATA, SEED)
    later = other.make(9)["y"]
    assert [one.make(step)["y"].tolist() for step in range(1, 10)][-1] == later.tolist()
    assert example_batches(7)(DATA, SEED + 1).make(9)["y"].tolist() != later.tolist()


def test_pairs_with_negatives_and_histories():
    users, items = np.nonzero(RNG.random((6, 9)) < 0.5)
    times = RNG.integers(0, 5, len(users))
    x = Interactions.from_coo(users, items, np.arange(1.0, len(users) + 1), times, n_users=6, n_items=9)
    cut = pair_batches(5, negatives=3, history="earlier", length=4)
    for step in range(1, 8):
        batch = cut(x, SEED).make(step)
        for user, item, value, negatives, history in zip(*batch.values(), strict=True):
            entry = x.indptr[user] + list(x.items_of(user)).index(item)
            assert value == x.values[entry]
            assert not set(negatives) & set(x.items_of(user))
            mine = slice(*x.indptr[user : user + 2])
            before = x.items[mine][x.timestamps[mine] < x.timestamps[entry]]
            order = np.argsort(x.timestamps[mine][x.timestamps[mine] < x.timestamps[entry]], kind="stable")
            expected = before[order][-4:].tolist()
            assert history.tolist() == [-1] * (4 - len(expected)) + expected


def test_negatives_follow_popularity():
    x = Interactions.from_coo([0, 1, 2, 3, 4], [0, 0, 0, 1, 2], n_users=6, n_items=4)
    drawn = pair_batches(5, negatives=2000, popularity=1.0, verify=False)(x, SEED).make(1)["negatives"]
    shares = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2, 0.0], atol=0.02)


def test_others_leave_the_entry_out():
    x = Interactions.from_coo([0] * 9 + [1], [*range(9), 4])
    histories = other_items(x, 5)(SEED, np.array([3] * 200 + [9]))
    assert set(histories[:-1].ravel()) == set(range(9)) - {3}
    assert histories[-1].tolist() == [-1] * 5
    assert set(other_items(x, 8)(SEED, np.array([3]))[0]) == set(range(9)) - {3}


def test_histories_without_and_with_times():
    x = Interactions.from_coo([0, 0, 0, 1], [2, 0, 1, 1], timestamps=[3, 2, 1, 0])
    assert last_items(x, 2).tolist() == [[0, 2], [-1, 1]]
    assert earlier_items(x, 2)(np.arange(4)).tolist() == [[-1, 1], [-1, -1], [1, 0], [-1, -1]]


def test_batches_refuse_what_they_cannot_cut():
    for cut, data, message in [
        (example_batches(41), DATA, "batch_size=41 is more than the 40 examples there are"),
        (example_batches(4), {"x": X, "y": X[:3]}, "examples of unequal number: {'x': 40, 'y': 3}"),
        (example_batches(4), X, "examples must be arrays by name; got ndarray"),
        (example_batches(4, sizes={"z": 3}), DATA, "there is no array 'z' among the examples"),
        (example_batches(4, ranges={"y": (0, 1)}), DATA, r"y: .* at \[\d+\] is outside \[0, 1\]"),
        (example_batches(4, sizes={"f": [2, 3]}), {"f": np.array([[1, 2], [0, 3]])}, r"f: id 3 at \[1, 1\] is outside"),
        (example_batches(4, sizes={"f": 3}), {"f": np.ones(4)}, "f are float64; ids are whole numbers"),
        (example_batches(4, sizes={"f": [2]}), {"f": np.zeros((4, 2), int)}, "the last axis must be of 1 fields"),
        (pair_batches(2, history="earlier"), Interactions.from_coo([0, 1], [0, 1]), "needs timestamps"),
    ]:
        with pytest.raises(InteractionError, match=message):
            cut(data, SEED)
    with pytest.raises(TypeError, match="must be Interactions"):
        pair_batches(2)(X, SEED)
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number"):
        example_batches(0)(DATA, SEED)
    with pytest.raises(ValueError, match="negatives=-1"):
        pair_batches(2, negatives=-1)


def test_what_is_made_ahead_comes_in_order_and_fails_in_its_turn():
    def make(number):
        if number == 4:
            raise RuntimeError("the fourth")
        return number

    taken = []
    with Prefetch(make, 1, 9) as ready, pytest.raises(RuntimeError, match="the fourth"):
        list(map(taken.append, ready))
    assert taken == [1, 2, 3]


# Gradient descent


def test_a_step_is_that_of_optax():
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(optax.cosine_decay_schedule(0.1, 12)))
    state, history = trained(descent(optimizer=optimizer))
    parameters, memory = START, optimizer.init(START)
    batches = example_batches(8)(DATA, np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.split(KEY)[0], 1))))
    for step in range(1, 13):
        loss, slope = jax.value_and_grad(line)(parameters, batches.make(step), KEY)
        changes, memory = optimizer.update(slope, memory, parameters)
        parameters = optax.apply_updates(parameters, changes)
        assert float(history.loss[step - 1]) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(state.parameters["w"], parameters["w"], rtol=1e-4)
    assert int(state.step) == 12


def test_two_runs_are_the_same_to_the_last_bit():
    same(trained()[0], trained()[0])
    assert not np.array_equal(trained()[0].parameters["w"], trained(key=jax.random.key(4))[0].parameters["w"])


def test_accumulated_parts_are_the_whole_batch():
    whole, parts = trained()[0], trained(descent(accumulate=4))[0]
    np.testing.assert_allclose(whole.parameters["w"], parts.parameters["w"], rtol=1e-4)
    with pytest.raises(ValueError, match="a batch of 8 cannot be computed in 3 equal parts"):
        trained(descent(accumulate=3))
    with pytest.raises(ValueError, match="accumulate=0"):
        descent(accumulate=0)


def test_low_precision_keeps_masters_in_float32():
    state, _ = trained(descent(compute_dtype=jnp.bfloat16), steps=200)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.parameters)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(state.parameters["w"], [1.0, -2.0, 0.5], atol=0.05)


def table_descent(optimizer, accumulate=1, rows=True):
    """Users and items in one table, whose products with each other are learned; through rows or as a whole."""
    table = 0.1 * jax.random.normal(KEY, (30, 4))

    def ids(batch):
        return jnp.stack([batch["users"], batch["items"] + 10], axis=1)

    def loss(p, batch, key):
        vectors = p.table if rows else p.table[ids(batch)]
        return losses.squared_error(jnp.sum(vectors[:, 0] * vectors[:, 1], axis=1) + p.network, batch["values"])

    chosen = Rows(ids, optimizer, 0.1) if rows else None
    return gradient(
        loss, optax.sgd(0.1), pair_batches(6), init=Embedded(table, jnp.zeros(())), rows=chosen, accumulate=accumulate
    )


def ratings():
    users, items = np.nonzero(RNG.random((10, 20)) < 0.3)
    return Interactions.from_coo(users, items, RNG.normal(size=len(users)), n_users=10, n_items=20)


def test_rows_of_a_table_move_as_the_whole_table_would():
    x = ratings()
    whole, _ = fit(table_descent("sgd", rows=False), x, key=KEY, steps=9)
    for accumulate in (1, 3):
        rows, _ = fit(table_descent("sgd", accumulate), x, key=KEY, steps=9)
        np.testing.assert_allclose(rows.parameters.table, whole.parameters.table, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rows.parameters.network, whole.parameters.network, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad", "adam"])
def test_rows_have_optimizers_of_their_own(optimizer):
    _, history = fit(table_descent(optimizer), ratings(), key=KEY, steps=300)
    assert history.loss[-30:].mean() < 0.3 * history.loss[:30].mean()


def test_a_step_works_under_jit_vmap_and_scan():
    """A grid of learning rates at once, all steps in one program."""
    batches = example_batches(8)(DATA, SEED)
    stacked = jax.tree.map(lambda *b: np.stack(b), *(batches.make(step) for step in range(1, 21)))

    def train(rate):
        step = gradient_step(line, optax.sgd(rate))
        keys = jax.random.split(KEY, 20)
        start = start_training(START, optax.sgd(rate))
        return jax.lax.scan(lambda state, kb: step(kb[0], state, kb[1]), start, (keys, stacked))

    rates = jnp.array([0.01, 0.1])
    states, info = jax.jit(jax.vmap(train))(rates)
    for place, rate in enumerate(rates):
        alone, _ = jax.jit(train)(rate)
        np.testing.assert_allclose(states.parameters["w"][place], alone.parameters["w"], rtol=1e-5)
    assert info.loss.shape == (2, 20)


# What goes wrong, and early ends


def test_a_number_that_is_not_finite_names_the_step_and_changes_nothing():
    data = {name: array.copy() for name, array in DATA.items()}
    data["x"][17] = np.nan
    seen = {}
    with pytest.raises(DivergenceError, match=r"gradient, step \d+, the loss is not finite \(nan\)") as caught:
        fit(descent(), data, key=KEY, steps=12, callback=lambda n, state, info: seen.update({n: state.parameters["w"]}))
    step = max(seen, default=0) + 1
    assert f"step {step}," in str(caught.value)
    assert int(caught.value.state.step) == step - 1
    assert np.isfinite(np.asarray(caught.value.state.parameters["w"])).all()


def test_steps_in_one_call_are_those_of_one_call_each():
    seen = {}
    one_each, history = trained(steps=30, callback=lambda n, state, info: seen.update({n: float(info.loss)}))
    together, same_history = trained(steps=30)
    same(one_each, together)
    assert list(seen.values()) == history.loss.tolist() == same_history.loss.tolist()
    assert len(set(same_history.seconds.tolist())) < 15  # those of one call have the same
    assert len(set(history.seconds.tolist())) > 15


def test_large_batches_are_not_held_twice():
    keys = jax.random.split(KEY, 9)
    for n_bytes, most in {8: 8, 1 << 20: 4, 1 << 23: 1}.items():
        steps = Steps(descent(), keys, 1, jax.tree.structure(0), like=np.zeros(n_bytes, np.uint8))
        assert steps.in_a_call(100, seconds=[1e-9]) == most


def test_batches_have_the_same_shape():
    def cut(data, seed):
        return Batches(lambda step: {name: array[: 8 - step // 5] for name, array in data.items()}, 8, 40)

    algorithm = gradient(line, optax.adam(0.05), cut, init=START)
    differing = r"shapes \{'x': \((\d), 3\), 'y': .*, another \{'x': \((?!\1)\d, 3\).*mask"
    with pytest.raises(InteractionError, match=differing):
        trained(algorithm)


def test_a_step_that_fails_amid_a_call_ends_it():
    data = {name: np.concatenate([array] * 100) for name, array in DATA.items()}
    broken = {name: array.copy() for name, array in data.items()}
    row = example_batches(8)({"row": np.arange(4000)}, fit_seed()).make(23)["row"][5]
    broken["y"][row] = np.inf
    with pytest.raises(DivergenceError, match=r"step 23, the loss is not finite \(inf\)") as caught:
        fit(descent(), broken, key=KEY, steps=60)
    before, _ = fit(descent(), data, key=KEY, steps=22)
    same(caught.value.state, before)


def fit_seed() -> np.ndarray:
    """The seed of batches that `fit` has by `KEY`."""
    return np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.split(KEY)[0], 1)))


def test_a_gradient_that_is_not_finite_is_told_from_a_loss():
    def loss(p, batch, key):
        return jnp.sum(jnp.sqrt(p["w"]))  # at 0 without a slope

    algorithm = gradient(loss, optax.sgd(0.1), example_batches(8), init={"w": jnp.zeros(3)})
    with pytest.raises(DivergenceError, match=r"step 1, the gradient is not finite \(of 1 arrays; the loss is 0\)"):
        trained(algorithm)


def test_parameters_that_can_be_called_are_no_function_of_a_key():
    model = MLP([], numbers=3, hidden=(4,), rngs=nnx.Rngs(0))

    def loss(m, batch, key):
        return losses.squared_error(m(None, batch["x"]), batch["y"])

    given = loss, optax.adam(0.01), example_batches(8)
    by_model, _ = trained(gradient(*given, init=model))
    by_function, _ = trained(gradient(*given, init=lambda key: model))
    same(by_model, by_function)


def test_all_examples_masked():
    def loss(p, batch, key):
        return losses.squared_error(batch["x"] @ p["w"], batch["y"], where=batch["y"] > 1e9)

    with pytest.raises(DivergenceError, match="step 1, the loss is not finite"):
        trained(gradient(loss, optax.sgd(0.1), example_batches(8), init={"w": jnp.zeros(3)}))


def test_the_best_state_is_given_back():
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    kept = []

    def validate(state):
        kept.append(np.asarray(state.parameters["w"]))
        return next(scores)

    state, history = trained(validate=validate, steps=60, patience=3)  # 5 steps an epoch
    assert history.stopped == "patience"
    assert history.validated.tolist() == [5, 10, 15, 20, 25]
    np.testing.assert_array_equal(state.parameters["w"], kept[1])


def test_an_end_by_tolerance_or_callback():
    # By whole epochs, whose losses are less noisy than those of batches.
    _, history = trained(descent(optimizer=optax.sgd(0.3)), steps=500, tolerance=0.01)
    assert history.stopped == "tolerance"
    assert len(history.loss) % 5 == 0
    _, history = trained(callback=lambda step, state, info: step == 4)
    assert (history.stopped, len(history.loss)) == ("callback", 4)


def test_epochs_are_counted_in_examples():
    assert len(trained(steps=None, epochs=1.5)[1].loss) == 8  # 60 examples by 8
    x = Interactions.from_coo([0, 1], [0, 1])
    assert len(fit(implicit_als(rank=2), x, key=KEY, epochs=3)[1].loss) == 3
    for options in ({"steps": None}, {"epochs": 2}):
        with pytest.raises(ValueError, match="give either steps or epochs"):
            trained(**options)
    with pytest.raises(ValueError, match="epochs=0 must be above 0"):
        trained(steps=None, epochs=0)


# Checkpoints


def cut_off(folder, at, algorithm=None, **options):
    """A run that ends without notice after a step."""

    def stop(step, state, info):
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(algorithm, checkpoint=folder, callback=stop, **options)


@pytest.mark.parametrize("at", [2, 5, 11])
def test_a_run_taken_up_again_ends_in_the_same_bits(tmp_path, at):
    whole, history = trained()
    cut_off(tmp_path / "run", at, checkpoint_every=2)
    assert latest_step(tmp_path / "run") == ((at - 1) // 2 * 2 or None)
    again, resumed = trained(checkpoint=tmp_path / "run", checkpoint_every=2)
    same(again, whole)
    np.testing.assert_array_equal(resumed.loss, history.loss)
    finished, _ = trained(checkpoint=tmp_path / "run", callback=lambda *_: pytest.fail("there was nothing to do"))
    same(finished, whole)


def test_validation_goes_on_where_it_was(tmp_path):
    def validate(state):
        return -float(jnp.sum((state.parameters["w"] - jnp.array([0.3, -0.6, 0.2])) ** 2))

    options = {"steps": 60, "validate": validate, "validate_every": 3, "patience": 4}
    whole, history = trained(**options)
    assert history.stopped == "patience"
    cut_off(tmp_path / "run", int(history.validated[-1]) - 1, **options)
    again, resumed = trained(checkpoint=tmp_path / "run", **options)
    same(again, whole)
    np.testing.assert_array_equal(resumed.validation, history.validation)
    assert resumed.stopped == "patience"


def test_sweeps_have_checkpoints_too(tmp_path):
    x = ratings()
    whole, _ = fit(implicit_als(rank=3), x, key=KEY, steps=6)
    fit(implicit_als(rank=3), x, key=KEY, steps=6, checkpoint=tmp_path, callback=lambda step, *_: step == 3)
    again, _ = fit(implicit_als(rank=3), x, key=KEY, steps=6, checkpoint=tmp_path)
    same(again, whole)


def test_a_run_of_something_else_is_refused(tmp_path):
    trained(checkpoint=tmp_path / "run")
    for algorithm, options, message in [
        (None, {"key": jax.random.key(9)}, "holds a run with key=.*9"),
        (descent(name="another"), {}, "algorithm=gradient; this one has algorithm=another"),
        (descent(batch_size=4), {}, "batch_size=8; this one has batch_size=4"),
        (descent(optimizer=optax.sgd(0.1)), {}, "of another model: .* and missing here"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            trained(algorithm, checkpoint=tmp_path / "run", **options)
    assert latest_step(tmp_path / "run") == 12


_KILLED = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from affinax.engine.factorization import fit
from affinax.engine.training import example_batches, gradient, losses

x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
data = {"x": x, "y": x.sum(axis=1)}
loss = lambda p, batch, key: losses.squared_error(batch["x"] @ p, batch["y"])
descent = gradient(loss, optax.adam(0.01), example_batches(8), init=jnp.zeros(3))
state, history = fit(descent, data, key=jax.random.key(0), steps=60, checkpoint=sys.argv[1], checkpoint_every=1)
print(np.asarray(state.parameters).tobytes().hex())
"""


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    """Three times, at any moment, while every step is saved."""

    def start(folder):
        command = [sys.executable, "-c", textwrap.dedent(_KILLED), str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT / "tests", env=os.environ)

    whole = start(tmp_path / "whole")
    for pause in np.random.default_rng(time.time_ns()).uniform(0.0, 0.4, 3):
        killed, before = start(tmp_path / "killed"), latest_step(tmp_path / "killed") or 0
        while killed.poll() is None and (latest_step(tmp_path / "killed") or 0) <= before + 3:
            time.sleep(0.01)
        time.sleep(pause)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    again = start(tmp_path / "killed")
    assert again.communicate()[0] == whole.communicate()[0] != ""


def test_no_checkpoint_where_a_file_is(tmp_path):
    path = Path(tmp_path / "file")
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        trained(checkpoint=path)
    assert path.read_text() == "mine"


def test_a_step_must_keep_the_structure_of_its_state():
    def step(key, state, batch):
        return (state, state), Info(jnp.float32(0), jnp.zeros(2, jnp.int32), jnp.full(2, -1, jnp.int32))

    odd = Algorithm(lambda key, data: jnp.zeros(2), step, "odd", example_batches(2))
    with pytest.raises(TypeError, match="a step must give a state of the structure that it was given"):
        fit(odd, {"x": np.zeros(4, np.float32)}, key=KEY, steps=1)
