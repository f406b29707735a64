"""Embedding tables against torch: bags and their gradients, and steps of an optimizer on tables of any size."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from affinax.kernels import embedding, huge_pages, simd
from affinax.kernels.csr import CSR

from .measure import take_turns
from .record import record

BAGS, LENGTH, WIDTH, ROWS = 4096, 20, 64, 1_000_000


def drawn(n_rows: int, n: int) -> np.ndarray:
    """Ids of which few are frequent: a fifth of them has more than half of the draws."""
    return (n_rows * np.random.default_rng(0).random(n) ** 3).astype(np.int32)


def bags_and_targets():
    bags = CSR(
        jnp.arange(0, BAGS * LENGTH + 1, LENGTH, dtype=jnp.int32), jnp.asarray(drawn(ROWS, BAGS * LENGTH)), jnp.ones(1)
    )
    return bags, jnp.asarray(np.random.default_rng(1).normal(size=(BAGS, WIDTH)), jnp.float32)


def squares(pooled, targets):
    """A loss, of either library."""
    return 0.5 * ((pooled - targets) ** 2).sum()


def peer(torch, sparse: bool):
    """A call that pools and goes back, and its module."""
    torch.set_num_threads(2)
    bags, targets = (jax.tree.map(lambda a: torch.from_numpy(np.array(a)), part) for part in bags_and_targets())
    module = torch.nn.EmbeddingBag(ROWS, WIDTH, mode="sum", sparse=sparse)
    ids, offsets = bags.indices.long(), bags.indptr[:-1].long()

    def run():
        module.weight.grad = None
        squares(module(ids, offsets), targets).backward()

    return run, module


def test_bag_and_dense_gradient(benchmark):
    torch = pytest.importorskip("torch")
    bags, targets = bags_and_targets()
    table = jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, WIDTH)), jnp.float32)
    both = jax.jit(jax.value_and_grad(lambda table, bags: squares(embedding.bag(table, bags), targets)))
    forward = jax.jit(embedding.bag)
    run, module = peer(torch, sparse=False)
    with torch.no_grad():
        ids, offsets = (torch.from_numpy(np.array(a)).long() for a in (bags.indices, bags.indptr[:-1]))

    def torch_forward():
        with torch.no_grad():
            module(ids, offsets)

    calls = {"affinax": lambda: jax.block_until_ready(both(table, bags)), "torch": run}
    seconds = take_turns(benchmark, calls, rounds=15, pause=0.02)
    # 256 MB of gradient come from the system each time: a virtual machine may have to ask its host for what it gave
    # back after the other's turn, which takes longer than all the rest.
    in_a_row = {f"{name}, in a row": lambda call=call: [call() for _ in range(5)] for name, call in calls.items()}
    seconds |= {name: took / 5 for name, took in take_turns(None, in_a_row, rounds=7, pause=0.02).items()}
    alone = {
        "affinax, forward alone": lambda: jax.block_until_ready(forward(table, bags)),
        "torch, forward alone": torch_forward,
    }
    seconds |= take_turns(None, alone, rounds=51)
    found = seconds | {
        "torch over ours": seconds["torch"] / seconds["affinax"],
        "torch over ours, in a row": seconds["torch, in a row"] / seconds["affinax, in a row"],
        "torch over ours, forward alone": seconds["torch, forward alone"] / seconds["affinax, forward alone"],
    }
    record("embedding", {"sum of 4,096 bags of 20 and dense gradient, 1 M rows x 64, s": found})


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_bag_and_step_of_its_rows(benchmark, optimizer):
    """Nothing of the size of the table: its rows alone are moved. The peer's gradient is sparse."""
    torch = pytest.importorskip("torch")
    bags, targets = bags_and_targets()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, bags):
        total, slope = jax.value_and_grad(squares)(embedding.bag(state[0], bags), targets)
        return embedding.update_rows(*state, bags, slope, optimizer=optimizer, learning_rate=0.01), total

    table = jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, WIDTH)), jnp.float32)
    held = [(table, embedding.start_slots(table, optimizer))]

    def ours():
        held[0], _ = jax.block_until_ready(step(held[0], bags))

    run, module = peer(torch, sparse=True)
    rule = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}[optimizer](module.parameters(), lr=0.01)

    def theirs():
        run()
        rule.step()

    def gradient_alone():
        run()
        module.weight.grad.coalesce()

    calls = {"affinax": ours, "torch": theirs, "torch, coalesced gradient alone": gradient_alone}
    seconds = take_turns(benchmark, calls, rounds=15, pause=0.02)
    found = seconds | {"torch over ours": seconds["torch"] / seconds["affinax"]}
    record("embedding", {f"sum of 4,096 bags of 20 and a step of {optimizer} on 1 M rows x 64, s": found})


@numba.njit(parallel=True, nogil=True)
def visit(table, slots, rows):
    """Reads and writes these rows, on two threads: what no step can do without."""
    for part in numba.prange(2):
        for k in range(part * len(rows) // 2, (part + 1) * len(rows) // 2):
            later = np.int64(rows[min(k + 16, len(rows) - 1)])
            for array in (table, slots):
                simd.prefetch(array, later * array.shape[1])
                for c in range(array.shape[1]):
                    array[rows[k], c] += np.float32(1)


@pytest.mark.parametrize(("optimizer", "width"), [("rowwise_adagrad", 16), ("rowwise_adagrad", 64), ("adagrad", 16)])
def test_a_step_costs_what_its_rows_do(benchmark, optimizer, width):
    """81,920 ids of 50,000 rows in tables of any size, in which they lie the farther apart the more others there are.

    So what is left of a slope are the machine's caches and pages, which a larger table does not fit: beside each step
    stands what it takes to visit its rows and do nothing more, and the step where the table is not in huge pages.
    """
    gradients = jnp.asarray(np.random.default_rng(1).normal(size=(BAGS * LENGTH, width)), jnp.float32)
    update = functools.partial(embedding.update_rows, optimizer=optimizer, learning_rate=0.01)
    step = jax.jit(update, donate_argnums=(0, 1))
    held, calls = {}, {}

    def run(name, ids):
        held[name] = jax.block_until_ready(step(*held[name], ids, gradients))

    for n_rows in (100_000, 1_000_000, 10_000_000):
        name = f"{n_rows:,} rows"
        rows = np.random.default_rng(2).choice(n_rows, 50_000, replace=False)
        drawn_rows = rows[drawn(len(rows), BAGS * LENGTH)]
        for pages, place in (("", huge_pages.copy), (", small pages", jnp.array)):
            table = jnp.zeros((n_rows, width))
            held[name + pages] = jax.tree.map(place, (table, embedding.start_slots(table, optimizer)))
            calls[name + pages] = functools.partial(run, name + pages, jnp.asarray(drawn_rows, jnp.int32))
        # NumPy asks for huge pages too.
        arrays = [np.full((n_rows, columns), 1, np.float32) for columns in (width, held[name][1][0].size // n_rows)]
        calls[f"{name}, visited alone"] = functools.partial(visit, *arrays, np.unique(drawn_rows))
    seconds = take_turns(benchmark, calls, rounds=41)
    record("embedding", {f"a step of {optimizer}, 81,920 ids, {width} columns, s": seconds})
