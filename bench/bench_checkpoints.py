"""Runs that are killed at any moment, and what a checkpoint costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from affinax.engine.training import latest_step, restore_checkpoint, save_checkpoint

from .measure import take_turns
from .record import record

KILLS = 20
_TRAINED = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from affinax.engine.factorization import fit
from affinax.engine.training import example_batches, gradient, losses

x = np.random.default_rng(0).normal(size=(4096, 64)).astype(np.float32)
data = {"x": x, "y": x[:, :3].sum(axis=1)}
loss = lambda p, batch, key: losses.squared_error(batch["x"] @ p, batch["y"])
descent = gradient(loss, optax.adam(0.01), example_batches(256), init=jnp.zeros(64))
state, _ = fit(descent, data, key=jax.random.key(0), steps=int(sys.argv[2]), checkpoint=sys.argv[1], checkpoint_every=1)
print(np.asarray(state.parameters).tobytes().hex())
"""


def started(folder: Path, steps: int) -> subprocess.Popen:
    command = [sys.executable, "-c", _TRAINED, str(folder), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def test_kills(tmp_path):
    """Every step is saved; a kill comes within a second of the first saving."""
    steps, rng, whole_ones, killed_at = 1000, np.random.default_rng(0), 0, []
    whole = started(tmp_path / "whole", steps).communicate()[0]
    for _ in range(KILLS):
        run, before = started(tmp_path / "killed", steps), latest_step(tmp_path / "killed") or 0
        while run.poll() is None and (latest_step(tmp_path / "killed") or 0) <= before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 1))
        run.send_signal(signal.SIGKILL)
        run.wait()
        killed_at.append(latest_step(tmp_path / "killed"))
        whole_ones += killed_at[-1] is not None
    again = started(tmp_path / "killed", steps).communicate()[0]
    found = {"kills": KILLS, "whole checkpoints after them": whole_ones, "steps when killed": killed_at}
    record("checkpoints", {"kill -9": found | {"same bits as a run that was not": again == whole != ""}})
    assert again == whole != ""


def test_cost_of_a_checkpoint(benchmark, tmp_path):
    states = {size: jnp.ones(size * 2**18) for size in (1, 100)}
    calls = {}
    for size, state in states.items():
        folder = tmp_path / str(size)
        calls[f"save {size} MiB, s"] = lambda folder=folder, state=state: save_checkpoint(folder, 1, state)
        calls[f"restore {size} MiB, s"] = lambda folder=folder, state=state: restore_checkpoint(folder, state)
    record("checkpoints", {"cost": take_turns(benchmark, calls)})
