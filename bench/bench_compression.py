"""Rows in bytes and half bytes: how fast they are searched, how small they are, and what that costs in quality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from affinax import models
from affinax.engine.compression import quantize
from affinax.engine.data import Interactions
from affinax.engine.evaluation.metrics import ndcg_at_k, recall_at_k
from affinax.engine.factorization import fit, implicit_als
from affinax.engine.retrieval import top_k
from affinax.kernels import int8

from .bench_accuracy import SETTINGS_GOWALLA, gowalla
from .measure import take_turns
from .record import record

KEY = jax.random.key(0)


def waited(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def vectors(n: int, width: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (n, width))


def overlap(ids: Any, expected: Any) -> float:
    """Share of the expected ids that are found, of each row."""
    return float(np.mean([len({*one} & {*other}) / len(other) for one, other in zip(ids, expected, strict=True)]))


def test_one_query(benchmark):
    """The 100 best of 200,000 x 128 for one query, against XLA's product and selection in float32.

    Alone after another table, and after seven queries of the same, as a server has them: bytes stay in the cache then.
    """
    queries, items, k = vectors(1, 128, 0), vectors(200_000, 128, 1), 100

    def plain(queries: jax.Array, items: jax.Array) -> Any:
        return lax.top_k(queries @ items.T, k)

    tables = {kind: quantize(items, kind, clip="search") for kind in ("int8", "int4")}
    calls = {f"affinax, {name}": waited(lambda q, i: top_k(q, i, k), queries, rows) for name, rows in tables.items()}
    calls |= {"affinax, float32": waited(lambda q, i: top_k(q, i, k), queries, items)}
    calls |= {"XLA, float32": waited(plain, queries, items)}
    seconds = take_turns(benchmark, calls, rounds=31)
    in_a_row = {name: lambda call=call: [call() for _ in range(8)] for name, call in calls.items()}
    steady = {name: took / 8 for name, took in take_turns(None, in_a_row, rounds=31).items()}
    several = vectors(64, 128, 2)  # of one, a share is a chance
    expected = np.asarray(plain(several, items)[1]).tolist()
    same = {name: overlap(np.asarray(top_k(several, t, k)[0]).tolist(), expected) for name, t in tables.items()}
    times = {name: seconds["XLA, float32"] / took for name, took in seconds.items()}
    in_a_row = {name: steady["XLA, float32"] / took for name, took in steady.items()}
    found = {"seconds": seconds, "times as fast as XLA, float32": times, "overlap with float32, the mean of 64": same}
    found |= {"seconds, in a row": steady, "times as fast as XLA, float32, in a row": in_a_row}
    record("compression", {"top 100 of 200,000 x 128, one query": found})


def test_many_queries(benchmark):
    """The 20 best of 27,000 x 64 for 4,096 queries, against faiss's flat index in float32."""
    import faiss

    queries, items, k = vectors(4096, 64, 0), vectors(27_000, 64, 1), 20
    index = faiss.IndexFlatIP(64)
    faiss.omp_set_num_threads(2)
    index.add(np.asarray(items))
    as_array = np.asarray(queries)
    tables = {kind: quantize(items, kind, clip="search") for kind in ("int8", "int4")}
    calls = {f"affinax, {name}": waited(lambda q, i: top_k(q, i, k), queries, rows) for name, rows in tables.items()}
    calls |= {"affinax, float32": waited(lambda q, i: top_k(q, i, k), queries, items)}
    calls |= {"faiss-cpu flat, float32": lambda: index.search(as_array, k)}
    seconds = take_turns(benchmark, calls, pause=0.5)
    expected = index.search(as_array, k)[1].tolist()
    same = {name: overlap(np.asarray(top_k(queries, t, k)[0]).tolist(), expected) for name, t in tables.items()}
    times = {name: seconds["faiss-cpu flat, float32"] / took for name, took in seconds.items()}
    found = {"seconds": seconds, "times as fast as faiss-cpu flat": times, "overlap with float32": same}
    record("compression", {"top 20 of 27,000 x 64, 4,096 queries": found})


def test_product(benchmark):
    """4,096 x 512 x 512: what "auto" takes, and both implementations, against float32."""
    shapes = ((4096, 512), (512, 512))
    a, b = (jax.random.randint(jax.random.key(seed), shape, -127, 128, jnp.int8) for seed, shape in enumerate(shapes))
    floats = a.astype(jnp.float32), b.astype(jnp.float32)
    calls = {
        name: waited(lambda a, b, name=name: int8.product(a, b, implementation=name), a, b)
        for name in ("auto", "numba", "reference")
    }
    calls |= {"XLA, float32": waited(lambda a, b: a @ b.T, *floats)}
    seconds = take_turns(benchmark, calls, rounds=31)
    times = {name: seconds["XLA, float32"] / took for name, took in seconds.items()}
    found = {"seconds": seconds, "times as fast as XLA, float32": times}
    record("compression", {"int8 product, 4,096 x 512 x 512": found})


def test_als_on_gowalla():
    """NDCG@10 and recall@20 of iALS with its item table in float32, bytes and half bytes."""
    train, test = gowalla()
    settings = SETTINGS_GOWALLA | {"rank": 64}
    model, _ = fit(implicit_als(**settings), train, key=KEY, steps=12, progress=False)
    record("compression", {"iALS on gowalla, rank 64, its item table": of_tables(model, train, test, exact=0)})


def test_two_towers_on_gowalla():
    """The same of two towers of ids, 64 wide, after 8 epochs."""
    train, test = gowalla()
    towers = models.tower_retriever(width=64, l2=0.22, learning_rate=0.01, batch_size=1024)
    model, _ = fit(towers, train, key=KEY, epochs=8, progress=False)
    found = of_tables(model, train, test, exact=1)
    record("compression", {"two towers on gowalla, 64 wide, their item table": found})


def of_tables(model: Any, train: Interactions, test: Interactions, exact: int) -> dict[str, Any]:
    """Quality by the item table as it is, and quantized but for its last columns."""
    users = np.flatnonzero(np.diff(test.indptr)).astype(np.int32)
    items = model.item_table()
    tables: dict[str, Any] = {"float32": items}
    tables |= {kind: quantize(items, kind, clip="search", exact=exact) for kind in ("int8", "int4")}
    found = {}
    for name, table in tables.items():
        ids, _ = top_k(model.queries(jnp.asarray(users)), table, 20, seen=train, rows=users)
        size = table.nbytes
        values = per_user(np.asarray(ids), test, users)
        found[name] = {"bytes": size, "share of the bytes": size / items.nbytes} | {
            metric: float(each.mean()) for metric, each in values.items()
        }
        if name == "float32":
            before = values
        differences = {metric: each - before[metric] for metric, each in values.items()}
        found[name] |= {
            f"{metric}, change": [float(d.mean()), float(1.96 * d.std(ddof=1) / len(d) ** 0.5)]
            for metric, d in differences.items()
        }
    return found


def per_user(ids: np.ndarray, test: Interactions, users: np.ndarray) -> dict[str, np.ndarray]:
    relevant = [test.items_of(int(user)) for user in users]
    return {
        "ndcg_at_10": np.asarray(ndcg_at_k(ids, relevant, 10)),
        "recall_at_20": np.asarray(recall_at_k(ids, relevant, 20)),
    }
