"""Dense networks and cross layers, forward and backward, against `jax.numpy`, PyTorch and the speed of one product."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.kernels import cross_network, dense

from .measure import take_turns
from .record import record

SHAPES = {  # rows, then the widths from the input on
    "a ranker": (4096, (112, 64, 64, 1)),
    "attention over a history": (204_800, (48, 64, 16, 1)),
    "one layer of 64": (25_600, (64, 64)),
}
CROSSED = 4096, 112, 2  # rows, width, layers


def drawn(rows: int, widths: tuple[int, ...]) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=(k, n), scale=k**-0.5).astype(np.float32), np.zeros(n, np.float32))
        for k, n in itertools.pairwise(widths)
    ]
    return rng.normal(size=(rows, widths[0])).astype(np.float32), layers


def both_ways(function: Any, *given: Any) -> Any:
    """A call that takes the function forward and back, in all that it is given."""
    step = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(function(*a) ** 2), tuple(range(len(given)))))
    return lambda: jax.block_until_ready(step(*given))


def backward(torch: Any, forward: Any, leaves: list[Any]) -> Any:
    """The same in PyTorch, on two threads."""
    torch.set_num_threads(2)

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        forward().square().sum().backward()

    return run


def product_rate() -> float:
    """Operations a second of a product of 4,096 x 4,096 x 4,096 by XLA or NumPy, whichever is faster here."""
    a, n = np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32), 4096
    b, multiply = jnp.asarray(a), jax.jit(jnp.matmul)
    calls = {"XLA": lambda: multiply(b, b).block_until_ready(), "NumPy": lambda: a @ a}
    return 2 * n**3 / min(take_turns(None, calls, rounds=5, pause=0.2).values())


def found(seconds: dict[str, float], operations: float) -> dict[str, float]:
    others = {name: taken / seconds["affinax"] for name, taken in seconds.items() if name != "affinax"}
    ratios = {f"{name} over ours": ratio for name, ratio in others.items()}
    rates = {"operations/s": operations / seconds["affinax"], "of one large product/s": product_rate()}
    return {f"{name}, s": taken for name, taken in seconds.items()} | ratios | rates


@pytest.mark.parametrize("name", SHAPES)
def test_network(benchmark, name):
    torch = pytest.importorskip("torch")
    rows, widths = SHAPES[name]
    x, layers = drawn(rows, widths)
    given = jnp.asarray(x), [(jnp.asarray(w), jnp.asarray(b)) for w, b in layers]
    linears = [torch.nn.Linear(k, n) for k, n in itertools.pairwise(widths)]
    relus = [part for linear in linears for part in (linear, torch.nn.ReLU())][:-1]
    module, start = torch.nn.Sequential(*relus), torch.from_numpy(x).requires_grad_()
    calls = {
        "affinax": both_ways(dense.network, *given),
        "jax.numpy": both_ways(functools.partial(dense.network, implementation="reference"), *given),
        "torch": backward(torch, lambda: module(start), [start, *module.parameters()]),
    }
    seconds = take_turns(benchmark, calls, rounds=31, pause=0.02)
    operations = 6 * rows * sum(k * n for k, n in itertools.pairwise(widths))
    record("dense", {f"{name}, {rows:,} x {' x '.join(map(str, widths))}": found(seconds, operations)})


def test_cross_layers(benchmark):
    torch = pytest.importorskip("torch")
    rows, n, n_layers = CROSSED
    x, layers = drawn(rows, (n,) * (n_layers + 1))
    weights, biases = (np.stack(arrays) for arrays in zip(*layers, strict=True))
    given = tuple(map(jnp.asarray, (x, weights, biases)))
    leaves = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, weights, biases)]

    def forward() -> Any:
        start, row = leaves[0], leaves[0]
        for w, b in zip(leaves[1], leaves[2], strict=True):
            row = start * torch.addmm(b, row, w) + row
        return row

    calls = {
        "affinax": both_ways(cross_network.cross, *given),
        "jax.numpy": both_ways(functools.partial(cross_network.cross, implementation="reference"), *given),
        "torch": backward(torch, forward, leaves),
    }
    seconds = take_turns(benchmark, calls, rounds=31, pause=0.02)
    record("dense", {f"{n_layers} cross layers, {rows:,} x {n}": found(seconds, 6 * rows * n * n * n_layers)})
