"""Rows in bytes and half bytes: how fast they are searched, how small they are, and what that costs in quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from affinax.engine.compression import ProductRows, quantize, quantize_products, truncate
from affinax.engine.data import Interactions, split_random
from affinax.engine.evaluation import evaluate
from affinax.engine.evaluation.metrics import ndcg_at_k, recall_at_k
from affinax.engine.factorization import Algorithm, Factors, fit, implicit_als
from affinax.engine.retrieval import top_k
from affinax.engine.training import Embedded, Rows, gradient, pair_batches
from affinax.kernels import int8

from .bench_accuracy import SETTINGS_GOWALLA, gowalla
from .bench_networks import TOWERS_GOWALLA, as_towers, log_shares, loss_of_towers, trained_towers
from .measure import take_turns
from .record import record

KEY = jax.random.key(0)
PRODUCT_EPOCHS = 3  # by `test_choose_products`


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

    By codes alone, and as the best of twice as many by codes, which the table itself then ranks.

    Alone after another table, and after seven queries of the same, as a server has them: bytes stay in the cache then.
    """
    queries, items, k = vectors(1, 128, 0), vectors(200_000, 128, 1), 100

    def plain(queries: jax.Array, items: jax.Array) -> Any:
        return lax.top_k(queries @ items.T, k)

    def ranked_again(queries: jax.Array, rows: Any, items: jax.Array) -> Any:
        return top_k(queries, items, k, allow=top_k(queries, rows, 2 * k)[0])

    tables = {kind: quantize(items, kind, clip="search") for kind in ("int8", "int4")}
    calls = {f"affinax, {name}": waited(lambda q, i: top_k(q, i, k), queries, rows) for name, rows in tables.items()}
    calls |= {
        f"affinax, {name}, then float32": waited(ranked_again, queries, rows, items) for name, rows in tables.items()
    }
    calls |= {"affinax, float32": waited(lambda q, i: top_k(q, i, k), queries, items)}
    calls |= {"XLA, float32": waited(plain, queries, items)}
    seconds = take_turns(benchmark, calls, rounds=31)
    in_a_row = {name: lambda call=call: [call() for _ in range(8)] for name, call in calls.items()}
    steady = {name: took / 8 for name, took in take_turns(None, in_a_row, rounds=31).items()}
    several = vectors(64, 128, 2)  # of one, a share is a chance
    expected = np.asarray(plain(several, items)[1]).tolist()
    same = {name: overlap(np.asarray(top_k(several, t, k)[0]).tolist(), expected) for name, t in tables.items()}
    same |= {
        f"{name}, then float32": overlap(np.asarray(ranked_again(several, t, items)[0]).tolist(), expected)
        for name, t in tables.items()
    }
    # What the bytes of the table alone cost: no search in it can find more.
    whole = jax.jit(plain)(several, tables["int8"].floats())[1]
    same["int8, queries in float32"] = overlap(np.asarray(whole).tolist(), expected)
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
    found = of_tables(quantized(model, exact=0), train, test)
    record("compression", {"iALS on gowalla, rank 64, its item table": found})


def test_two_towers_on_gowalla():
    """The same of two towers of ids, 511 wide; and with items put together from 85 parts, a byte each.

    The parts are those that k-means finds in the trained table, and then centroids, biases and users are trained on.
    """
    train, test = gowalla()
    table = trained_towers(train)[0].parameters.table
    model = as_towers(table, train)
    users, rows = in_products(table, train)
    start = towers_in_products(train, users, rows)
    trained, _ = fit(start, train, key=KEY, epochs=PRODUCT_EPOCHS)
    named = quantized(model, exact=1)
    named["85 parts"] = with_products(start.init(KEY, train), rows, train)
    named["85 parts, trained on"] = with_products(trained, rows, train)
    record("compression", {"two towers on gowalla, 511 wide, their item table": of_tables(named, train, test)})


def in_products(table: jax.Array, train: Interactions) -> tuple[jax.Array, ProductRows]:
    """Users' vectors, and items' in products: of the 340 columns that are left of the towers' by their largest shares.

    K-means sees items by what they add to scores: times how far the users' columns reach, which are uncorrelated. Each
    part has columns of large shares and of small ones. On the validation part of `test_choose_products` that costs 7 %
    of NDCG@10 before more training, 511 columns in 73 parts as they are 13 %.
    """
    users, items = jnp.split(table, [train.n_users])
    factors = truncate(Factors(users[:, :-1], items[:, :-1]), 340)
    order = np.arange(340).reshape(4, 85).T.reshape(-1)
    reach = jnp.sqrt(jnp.mean(factors.users**2, axis=0))[order]
    found = quantize_products(factors.items[:, order] * reach, 85)
    rows = replace(found, centroids=found.centroids / reach.reshape(85, 1, 4), exact=items[:, -1:])
    return jnp.pad(factors.users[:, order], ((0, 0), (0, 1))), rows


def test_choose_products():
    """For how many epochs these are trained on: NDCG@10 on a validation part, after each."""
    train, valid = split_random(gowalla()[0], 0.1, seed=1)
    table = trained_towers(train)[0].parameters.table
    users, rows = in_products(table, train)

    def found(towers: Any) -> float:
        return evaluate(towers, valid, train=train, k=10, names=("ndcg",)).means["ndcg_at_10"]

    options = {"validate": lambda state: found(with_products(state, rows, train)[0]), "patience": 2}
    _, history = fit(towers_in_products(train, users, rows), train, key=KEY, epochs=12, **options)
    scores = {"float32": found(as_towers(table, train)), "after each epoch": history.validation.tolist()}
    record("compression", {"two towers on gowalla in 85 parts, NDCG@10 on a validation part": scores})


def with_products(state: Any, rows: ProductRows, train: Interactions) -> tuple[Any, ProductRows]:
    """The model that answers, and its item table in products, as they were trained."""
    centroids, biases = state.parameters.network
    rows = replace(rows, centroids=centroids, exact=biases)
    return as_towers(jnp.concatenate([state.parameters.table, rows.floats()]), train), rows


def towers_in_products(train: Interactions, users: jax.Array, rows: ProductRows) -> Algorithm:
    """The loss of the towers, by centroids and biases of the items and by vectors of the users."""
    log_q = log_shares(train)

    def loss(p: Any, batch: Any, key: Any) -> Any:
        centroids, biases = p.network
        items = replace(rows, centroids=centroids, exact=biases)[batch["items"]]
        return loss_of_towers(p.table[:, :-1], items[:, :-1], items[:, -1], batch["items"], log_q)

    batches = pair_batches(TOWERS_GOWALLA["batch_size"])
    of_users = Rows(lambda batch: batch["users"], "adam", TOWERS_GOWALLA["learning_rate"])
    start = Embedded(users, (rows.centroids, rows.exact))
    return gradient(loss, optax.adam(1e-3), batches, init=start, rows=of_users, name="two towers in products")


def quantized(model: Any, exact: int) -> dict[str, tuple[Any, Any]]:
    """A model with its item table as it is, and with it quantized but for the last columns."""
    items = model.item_table()
    tables = {kind: quantize(items, kind, clip="search", exact=exact) for kind in ("int8", "int4")}
    return {name: (model, table) for name, table in ({"float32": items} | tables).items()}


def of_tables(named: dict[str, tuple[Any, Any]], train: Interactions, test: Interactions) -> dict[str, Any]:
    """Quality of the queries of each model by its item table, beside the first, "float32"."""
    users = np.flatnonzero(np.diff(test.indptr)).astype(np.int32)
    found, items = {}, named["float32"][1]
    for name, (model, table) in named.items():
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
