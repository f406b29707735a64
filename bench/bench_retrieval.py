"""Top-k against faiss and `implicit`, fold-in latency, start-up."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from affinax.engine.factorization import Factors, ImplicitObjective
from affinax.engine.retrieval import fixed_gramian, fold_in
from affinax.kernels import top_k
from affinax.kernels.csr import CSR

from .measure import take_turns
from .record import RUNS, record

USERS, ITEMS, WIDTH, K = 4096, 27_000, 64, 20


def test_top_k_against_peers(benchmark):
    import faiss
    from implicit.cpu.topk import topk
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    queries, items = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (USERS, ITEMS))
    seen = scipy.sparse.random_array((USERS, ITEMS), density=150 / ITEMS, format="csr", dtype=np.float32, rng=rng)
    seen.sort_indices()
    rows = jnp.arange(USERS, dtype=jnp.int32)
    mask = {"seen": CSR(jnp.asarray(seen.indptr), jnp.asarray(seen.indices), jnp.ones(1)), "seen_rows": rows}
    on_device = jnp.asarray(queries), jnp.asarray(items)
    search = jax.jit(lambda q, i, m: top_k.search(q, i, K, **m))
    index = faiss.IndexFlatIP(WIDTH)
    faiss.omp_set_num_threads(2)
    index.add(items)
    as_matrix = scipy.sparse.csr_matrix(seen)
    calls = {
        "affinax, seen items masked, s": lambda: jax.block_until_ready(search(*on_device, mask)),
        "affinax, nothing masked, s": lambda: jax.block_until_ready(search(*on_device, {})),
        "faiss-cpu flat, nothing masked, s": lambda: index.search(queries, K),
        "implicit, seen items masked, s": lambda: topk(items, queries, K, filter_query_items=as_matrix),
    }
    with threadpool_limits(2, "blas"):
        seconds = take_turns(benchmark, calls, pause=0.5)
    ours, _, flat, theirs = seconds.values()
    agree = float((np.asarray(search(*on_device, {})[0]) == index.search(queries, K)[1]).mean())
    record(
        "retrieval",
        {
            f"top_k, {USERS} x {ITEMS} x {WIDTH}, k = {K}": {
                **seconds,
                "ours masked over faiss": ours / flat,
                "implicit over ours": theirs / ours,
                "ids equal to faiss": agree,
            }
        },
    )


def test_one_query(benchmark):
    rng = np.random.default_rng(0)
    queries, items = (jnp.asarray(rng.normal(size=(n, WIDTH)), jnp.float32) for n in (1, ITEMS))
    calls = {}
    for name in ("auto", "reference"):
        search = jax.jit(lambda q, i, name=name: top_k.search(q, i, K, implementation=name))
        calls[name] = lambda search=search: jax.block_until_ready(search(queries, items))
    record("retrieval", {f"top_k of one query over {ITEMS} items, s": take_turns(benchmark, calls, 50)})


@pytest.mark.parametrize("batch", [1, 1024])
def test_fold_in_latency(benchmark, batch):
    rng = np.random.default_rng(0)
    objective = ImplicitObjective(*(jnp.float32(v) for v in (0.003, 1.0, 0.1)), None, jnp.float32(1.0))
    users, items = (jnp.asarray(rng.normal(0, 0.1, (n, WIDTH)), jnp.float32) for n in (1, ITEMS))
    model = Factors(users, items, objective=objective)
    gram = fixed_gramian(model)
    fold = jax.jit(lambda history: fold_in(model, history, gram=gram))
    rows = [np.sort(rng.choice(ITEMS, 100, replace=False)) for _ in range(batch)]
    indptr = jnp.arange(0, 100 * batch + 1, 100, dtype=jnp.int32)
    history = CSR(indptr, jnp.asarray(np.concatenate(rows), jnp.int32), jnp.ones(1))
    seconds = take_turns(benchmark, {"affinax, s": lambda: jax.block_until_ready(fold(history))}, 50)
    record("retrieval", {f"fold_in of {batch}, rank 64, 100 items": seconds})


def test_start_up(benchmark, tmp_path):
    from affinax.datasets import movielens

    x = movielens("100k")
    RUNS.mkdir(exist_ok=True)
    path = RUNS / "ml100k.csv"
    rows = np.stack([x.users, x.items, x.values.astype(int)], axis=1)
    np.savetxt(path, rows, fmt="%d", delimiter=",", header="user,item,value", comments="")
    fit = [sys.executable, "-m", "affinax", "fit", str(path), "--set", "epochs=1", "--out", str(RUNS / "model")]
    commands = {
        "import affinax, s": [sys.executable, "-c", "import affinax"],
        "import affinax.engine.factorization, s": [sys.executable, "-c", "import affinax.engine.factorization"],
        "fit ML-100K, one sweep, command line, s": fit,
    }
    calls = {
        name: lambda c=command: subprocess.run(c, check=True, capture_output=True) for name, command in commands.items()
    }
    cold = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    cold.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    subprocess.run(fit, check=True, capture_output=True, env=cold)
    uncached = {"fit ML-100K, one sweep, command line, nothing cached, s": time.perf_counter() - began}
    record("retrieval", {"start-up": take_turns(benchmark, calls) | uncached})
