"""Attention and cross entropy over a catalogue, forward and back: against `jax.numpy`, PyTorch, and the machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.kernels.attention import attention
from affinax.kernels.cross_entropy import cross_entropy

from .measure import take_turns
from .record import record

BATCH, LENGTH, WIDTH, ITEMS = 69, 200, 64, 3416  # as in SASRec on MovieLens 1M
KEY = jax.random.key(0)


def with_slopes(found: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The value and the gradients in all arguments, waited for."""
    mix = jax.random.normal(KEY, jax.eval_shape(found, *arguments).shape)
    both = jax.jit(lambda *a: jax.value_and_grad(lambda *b: jnp.sum(found(*b) * mix), tuple(range(len(a))))(*a))
    return lambda: jax.block_until_ready(both(*arguments))


@pytest.mark.parametrize("heads", [1, 4])
def test_attention(benchmark, heads):
    torch = pytest.importorskip("torch")
    arrays = [jax.random.normal(key, (BATCH, LENGTH, heads, WIDTH // heads)) for key in jax.random.split(KEY, 3)]
    segments = jnp.zeros((BATCH, LENGTH), jnp.int32)
    calls: dict[str, Callable[[], Any]] = {
        name: with_slopes(functools.partial(attention, segments=segments, implementation=implementation), *arrays)
        for name, implementation in (("affinax", "numba"), ("jax.numpy", "reference"))
    }
    tensors = [torch.tensor(np.moveaxis(np.asarray(a), 1, 2), requires_grad=True) for a in arrays]
    mix = torch.randn(BATCH, heads, LENGTH, WIDTH // heads)

    def theirs(threads: int) -> None:
        torch.set_num_threads(threads)
        out = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True)
        torch.autograd.grad((out * mix).sum(), tensors)

    calls |= {f"PyTorch, {threads} threads": functools.partial(theirs, threads) for threads in (1, 2)}
    seconds = take_turns(benchmark, calls, rounds=9, pause=0.2)
    ours = seconds["affinax"]
    found = {"seconds": seconds, "times as fast as": {name: took / ours for name, took in seconds.items()}}
    record("attention", {f"attention, {BATCH} x {LENGTH} x {WIDTH}, {heads} heads, forward and back": found})


@pytest.mark.parametrize("items", [ITEMS, 12_101])
def test_cross_entropy(benchmark, items):
    torch = pytest.importorskip("torch")
    rows = BATCH * LENGTH
    hidden, table = jax.random.normal(KEY, (rows, WIDTH)), 0.1 * jax.random.normal(KEY, (items, WIDTH))
    labels = jax.random.randint(KEY, (rows,), 0, items)

    def plain(hidden, table):
        logits = hidden @ table.T
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jnp.sum(jax.nn.logsumexp(logits, axis=1) - own)

    ways: dict[str, Callable[..., Any]] = {"jax.numpy, all logits": plain}
    for name, implementation in (("affinax", "numba"), ("affinax, reference", "reference")):
        ways[name] = functools.partial(cross_entropy, labels=labels, implementation=implementation)
    memory = {
        name: jax.jit(jax.value_and_grad(way, (0, 1)))
        .lower(hidden, table)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for name, way in ways.items()
    }
    calls: dict[str, Callable[[], Any]] = {
        name: with_slopes(ways[name], hidden, table) for name in ("affinax", "affinax, reference", *ways)
    }
    tensors = [torch.tensor(np.asarray(a), requires_grad=True) for a in (hidden, table)]
    truth = torch.tensor(np.asarray(labels), dtype=torch.int64)

    def theirs(threads: int) -> None:
        torch.set_num_threads(threads)
        loss = torch.nn.functional.cross_entropy(tensors[0] @ tensors[1].T, truth, reduction="sum")
        torch.autograd.grad(loss, tensors)

    calls |= {f"PyTorch, {threads} threads": functools.partial(theirs, threads) for threads in (1, 2)}
    square = jax.random.normal(KEY, (2048, 2048))
    product = jax.jit(lambda a: a @ a)
    calls["product of 2,048"] = lambda: jax.block_until_ready(product(square))
    seconds = take_turns(benchmark, calls, rounds=5, pause=0.2)
    ours, rate = seconds["affinax"], 2 * 2048**3 / seconds["product of 2,048"]
    found = {
        "seconds": seconds,
        "times as fast as": {name: took / ours for name, took in seconds.items()},
        "its three products at the rate of one large one, seconds": 3 * 2 * rows * items * WIDTH / rate,
        "memory besides arguments and results, bytes": memory,
    }
    record("attention", {f"cross entropy, {rows} x {WIDTH}, {items} items, forward and back": found})
