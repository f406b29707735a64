"""ALS sweeps against `implicit`, under its own objective: time, loss, memory, and how the cost grows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.engine.data import Interactions
from affinax.engine.factorization import fit, implicit_als
from affinax.kernels import least_squares
from affinax.kernels.csr import CSR, SparseMatrix

from .measure import peak_bytes, take_turns
from .record import RUNS, record
from .synthetic import fractal

ROUNDS, SWEEPS_A_ROUND = 5, 3  # the contestants take turns, round by round
L2 = 10.0
# Decided before the run: bfloat16 halves what is gathered; float32 is exact.
OURS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def peers_objective(x: Interactions, users: np.ndarray, items: np.ndarray) -> float:
    """`sum over all pairs of c (p - s)^2 + l2 (|X|^2 + |Y|^2)` with c = r where observed, else 1; in float64."""
    users, items = users.astype(np.float64), items.astype(np.float64)
    total = np.sum((users.T @ users) * (items.T @ items)) + L2 * ((users**2).sum() + (items**2).sum())
    for first in range(0, x.nnz, 1 << 20):
        part = slice(first, first + (1 << 20))
        s = np.einsum("nd,nd->n", users[x.users[part]], items[x.items[part]])
        total += np.sum(x.values[part] * (1 - s) ** 2 - s**2)
    return float(total)


class Implicit:
    """`implicit`'s default ALS, a round at a time: its `fit` goes on from the factors it has."""

    def __init__(self, x: Interactions, rank: int):
        from implicit.als import AlternatingLeastSquares

        self.matrix, self.seconds = x.to_scipy(), []
        self.model = AlternatingLeastSquares(
            rank, regularization=L2, iterations=SWEEPS_A_ROUND, num_threads=2, use_gpu=False, random_state=0
        )

    def round(self) -> None:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):
            self.model.fit(
                self.matrix, show_progress=False, callback=lambda sweep, elapsed, *_: self.seconds.append(elapsed)
            )

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.user_factors, self.model.item_factors


class Affinax:
    """Ours, with what `fit` calls, but for the jitted step to be kept between the rounds."""

    def __init__(self, data: SparseMatrix, rank: int, table_dtype):
        als = _als(rank, table_dtype)
        self.data, self.seconds, self.losses = data, [], []
        self.step = jax.jit(als.step)
        self.state = als.init(jax.random.key(0), data)
        jax.block_until_ready(self.step(jax.random.key(0), self.state, data))  # compiles; `test_first_sweep` has that

    def sweep(self) -> None:
        began = time.perf_counter()
        self.state, info = jax.block_until_ready(self.step(jax.random.key(0), self.state, self.data))
        self.seconds.append(time.perf_counter() - began)
        self.losses.append(float(info.loss))

    def round(self) -> None:
        for _ in range(SWEEPS_A_ROUND):
            self.sweep()

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.state.users), np.asarray(self.state.items)


def _als(rank: int, table_dtype):
    return implicit_als(rank, l2=L2, alpha=1.0, confidence_offset=0.0, solver="cg", table_dtype=table_dtype)


def _median_round(seconds: list[float]) -> float:
    return float(np.median(np.reshape(seconds, (ROUNDS, SWEEPS_A_ROUND)).mean(axis=1)))


@pytest.mark.parametrize("rank", [64, 128])
def test_sweep_against_implicit(benchmark, ml20m_shaped, rank):
    data = ml20m_shaped.to_device()
    peer, ours = Implicit(ml20m_shaped, rank), {name: Affinax(data, rank, dtype) for name, dtype in OURS.items()}
    contestants = {**{name: mine.round for name, mine in ours.items()}, "implicit": peer.round}
    take_turns(benchmark, contestants, ROUNDS, warm_up=False)
    sweep, loss = _median_round(peer.seconds), peers_objective(ml20m_shaped, *peer.factors())
    results = {"implicit": {"median_sweep_s": sweep, "loss": loss, "seconds_of_15_sweeps": sum(peer.seconds)}}
    for name, mine in ours.items():
        median, final = _median_round(mine.seconds), peers_objective(ml20m_shaped, *mine.factors())
        enough = next((k for k, value in enumerate(mine.losses, 1) if value <= loss), None)
        results[f"affinax {name}"] = {
            "median_sweep_s": median,
            "sweep_ratio": sweep / median,
            "loss": final,
            "loss_over_implicit": final / loss,
            "sweeps_to_implicits_loss": enough,
            "seconds_to_implicits_loss": enough and sum(mine.seconds[:enough]),
            "time_ratio_to_implicits_loss": enough and sum(peer.seconds) / sum(mine.seconds[:enough]),
        }
    record("als", {f"rank {rank}, {ml20m_shaped.nnz:,} interactions": results})


_FIRST = """
import sys, time
import jax, jax.numpy as jnp
from affinax.engine.data import Interactions
from affinax.engine.factorization import fit, implicit_als
x = Interactions.from_coo([0, 1, 1], [0, 0, 1], [1.0, 2.0, 3.0])
als = implicit_als(int(sys.argv[1]), alpha=1.0, solver="cg", table_dtype=sys.argv[2])
began = time.perf_counter()
fit(als, x, key=jax.random.key(0), steps=1, progress=False)
print(time.perf_counter() - began)
"""


def test_first_sweep(tmp_path):
    """What compilation adds to a process: a fit of three interactions, on a cold and on a warm cache."""
    results = {}
    for rank in (64, 128):
        for name in OURS:
            environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / f"{rank}{name}")}
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            command = [sys.executable, "-c", _FIRST, str(rank), name]
            runs = [
                float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
                for _ in range(4)
            ]
            results[f"rank {rank}, {name}"] = {"cold_s": runs[0], "warm_s": float(np.median(runs[1:]))}
    record("als", {"first sweep of a process, three interactions": results})


def _half_sweep(rows: CSR, n_columns: int, rank: int = 64) -> Callable[[], Any]:
    """The half sweep of one side alone, in bfloat16, ready to be called."""
    rng = np.random.default_rng(0)
    table, start = (jnp.asarray(rng.normal(0, 0.1, (n, rank)), jnp.float32) for n in (n_columns, rows.n_rows))
    one = jnp.ones(1)

    @jax.jit
    def half(table, start):
        gram, narrow = table.T @ table, table.astype(jnp.bfloat16)
        return least_squares.solve(rows.indptr, rows.indices, one, one, narrow, gram, one, start=start, solver="cg").x

    return lambda: jax.block_until_ready(half(table, start))


def test_half_sweep(benchmark, ml20m_shaped):
    """The user side at rank 64, for a profile."""
    half = _half_sweep(ml20m_shaped.to_device().by_user, ml20m_shaped.n_items)
    benchmark.pedantic(half, rounds=5, warmup_rounds=1)


_FIT = """
import sys
import jax, numpy as np
from affinax.engine.data import Interactions
from affinax.engine.factorization import fit, implicit_als
users, items, values = np.load(sys.argv[1]).values()
x = Interactions.from_coo(users, items, values, n_users=138_000, n_items=27_000)
del users, items, values
als = implicit_als(int(sys.argv[2]), l2=10.0, alpha=1.0, confidence_offset=0.0, solver="cg")
"""


def test_peak_memory(ml20m_shaped):
    results = {}
    for rank in (64, 128):
        call = "fit(als, x, key=jax.random.key(0), steps=3, progress=False)"
        above = peak_bytes(_FIT, call, RUNS / "ml20m_shaped.npz", rank)
        data = 2 * 8 * ml20m_shaped.nnz + 4 * rank * sum(ml20m_shaped.shape)
        results[f"rank {rank}"] = {
            "peak_above_input_gib": above / 2**30,
            "both_csr_and_factors_gib": data / 2**30,
            "ratio": above / data,
        }
    record("als", {"peak memory": results})


def _median_sweep(data: SparseMatrix, rank: int = 64) -> float:
    als = implicit_als(rank, l2=10.0, alpha=1.0, solver="cg", table_dtype=jnp.bfloat16)
    _, history = fit(als, data, key=jax.random.key(0), steps=6, progress=False)
    return float(np.median(history.seconds[1:]))


SHAPES = {  # users (None: 165 interactions each), items, copies in the expansion
    "small tables": (24_160, 14_824, (12, 12)),
    "middling tables": (36_240, 22_236, (12, 12)),
    "large tables": (72_480, 44_472, None),
    "users grow along": (None, 44_472, None),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_cost_against_interactions(shape):
    """Expansions of ML-1M: the slope of time against nnz on log scales.

    On tables of one size rows become longer, so that what each costs by itself weighs less and less: the slope is
    below 1, and the more so the larger the tables are. Where users come along with their 165 interactions, as in the
    source, everything grows but the items. All sizes are held at once and take turns, sweep by sweep: on a shared
    machine the speed of memory changes within minutes, and would bend the line.
    """
    n_users, n_items, copies = shape
    runs = {}
    for nnz in (10_000_000, 20_000_000, 40_000_000, 70_000_000, 100_000_000):
        x = fractal(nnz, n_users or nnz // 165, n_items, copies=copies)
        runs[x.nnz] = Affinax(x.to_device(), 64, jnp.bfloat16)
        del x
    seconds = take_turns(None, {str(nnz): run.sweep for nnz, run in runs.items()}, ROUNDS)
    points = [(nnz, seconds[str(nnz)]) for nnz in runs]
    slope = float(np.polyfit(*np.log(np.array(points)).T, 1)[0])
    users = f"{n_users:,} users" if n_users else "165 interactions a user"
    record(
        "als", {f"cost against nnz, {users}, {n_items:,} items, rank 64": {"points": points, "log_log_slope": slope}}
    )


def test_cost_against_table_size():
    """The user side at 10 M interactions, gathering from ever larger tables, which leave one cache after the other."""
    points = []
    for n_items in (16_000, 32_000, 64_000, 128_000, 256_000, 512_000, 1_024_000):
        half = _half_sweep(fractal(10_000_000, 72_480, n_items).to_device().by_user, n_items)
        half()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            half()
            seconds.append(time.perf_counter() - began)
        points.append((n_items, n_items * 64 * 2 / 2**20, float(np.median(seconds))))
    record("als", {"half sweep against table size, 10 M, rank 64": {"items, MiB in bfloat16, s": points}})


def test_cost_against_rank(ml20m_shaped):
    data, points = ml20m_shaped.to_device(), []
    for rank in (32, 64, 96, 128, 192, 256):
        points.append((rank, _median_sweep(data, rank)))
    record("als", {"cost against rank": {"points": points}})
