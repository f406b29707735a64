"""What the programs reach on an accelerator, beside its own limits: product rate and memory traffic measured here."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from affinax.engine.data import Interactions
from affinax.engine.factorization import Factors, ImplicitObjective, biased_mf, bpr, fit, implicit_als
from affinax.engine.retrieval import fixed_gramian, fold_in
from affinax.kernels import int8, quantized_rows, top_k
from affinax.kernels.attention import attention
from affinax.kernels.csr import CSR
from affinax.kernels.quantized_rows import QuantizedRows, to_bytes

from .measure import take_turns
from .record import record
from .synthetic import heavy_tailed

pytestmark = pytest.mark.skipif(jax.default_backend() == "cpu", reason="this process has no accelerator")

EXACT = lax.Precision.HIGHEST


def normal(seed: int, *shape: int):
    return jax.random.normal(jax.random.key(seed), shape)


def ready(function, *arguments):
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


@pytest.fixture(scope="module")
def limits() -> dict[str, float]:
    """Products in float32 and the traffic of a copy, bytes read and written."""
    n = 8192
    square, long = normal(0, n, n), normal(1, 1 << 28)
    calls = {
        "product": ready(lambda a: jnp.matmul(a, a, precision=EXACT), square),
        "copy": ready(lambda a: -a, long),
    }
    seconds = take_turns(None, calls)
    return {
        "float32 product, TFLOP/s": 2e-12 * n**3 / seconds["product"],
        "copy, GB/s": 8e-9 * (1 << 28) / seconds["copy"],
    }


def test_als(ml20m_shaped, limits):
    data, results = ml20m_shaped.to_device(), {}
    for rank, solver, dtype in [
        (64, "cg", jnp.float32),
        (64, "cg", jnp.bfloat16),
        (64, "cholesky", jnp.float32),
        (128, "cg", jnp.float32),
    ]:
        als = implicit_als(rank, l2=10.0, alpha=1.0, confidence_offset=0.0, solver=solver, table_dtype=dtype)
        began = time.perf_counter()
        _, history = fit(als, data, key=jax.random.key(0), steps=8, progress=False)
        # Each entry once a side: its part of the matrix, and its row read once.
        work = 4e-12 * ml20m_shaped.nnz * rank**2 / limits["float32 product, TFLOP/s"]
        traffic = 2e-9 * ml20m_shaped.nnz * rank * jnp.dtype(dtype).itemsize / limits["copy, GB/s"]
        median = float(np.median(history.seconds[1:]))
        results[f"rank {rank}, {solver}, {jnp.dtype(dtype).name}"] = {
            "median_sweep_s": median,
            "first_sweep_compiled_s": history.seconds[0],
            "whole_fit_s": time.perf_counter() - began,
            "loss": history.loss[-1],
            "arithmetic_alone_s": work,
            "reading_alone_s": traffic,
            "over_the_larger": median / max(work, traffic),
        }
    record("accelerator", {f"ALS sweep, {ml20m_shaped.nnz:,} interactions": results | limits})


def test_top_k():
    queries, items, k = normal(0, 4096, 64), normal(1, 27_000, 64), 20

    def plain(queries, items):
        return lax.top_k(jnp.matmul(queries, items.T, precision=EXACT), k)

    calls = {
        "affinax, s": ready(lambda q, i: top_k.search(q, i, k), queries, items),
        "product and lax.top_k, s": ready(plain, queries, items),
        "product alone, s": ready(lambda q, i: jnp.matmul(q, i.T, precision=EXACT), queries, items),
        "affinax, one query, s": ready(lambda q, i: top_k.search(q, i, k), queries[:1], items),
    }
    record("accelerator", {"top_k, 4096 x 27000 x 64, k = 20": take_turns(None, calls, 20)})


@pytest.mark.parametrize("batch", [1, 1024])
def test_fold_in_latency(batch):
    rng = np.random.default_rng(0)
    objective = ImplicitObjective(*(jnp.float32(v) for v in (0.003, 1.0, 0.1)), None, jnp.float32(1.0))
    model = Factors(0.1 * normal(0, 1, 64), 0.1 * normal(1, 27_000, 64), objective=objective)
    rows = [np.sort(rng.choice(27_000, 100, replace=False)) for _ in range(batch)]
    indptr = jnp.arange(0, 100 * batch + 1, 100, dtype=jnp.int32)
    history = CSR(indptr, jnp.asarray(np.concatenate(rows), jnp.int32), jnp.ones(1))
    gram = fixed_gramian(model)
    calls = {"affinax, s": ready(lambda history: fold_in(model, history, gram=gram), history)}
    record("accelerator", {f"fold_in of {batch}, rank 64, 100 items": take_turns(None, calls, 20)})


def test_minibatches():
    """Epochs of a matrix of ML-1M's shape."""
    users, items, values = heavy_tailed(6040, 3706, 1_000_000)
    x = Interactions.from_coo(users, items, values, n_users=6040, n_items=3706)
    data, results = x.to_device(), {}
    for make in (biased_mf, bpr):
        for size in (1024, 16_384):
            algorithm: Any = make(64, batch_size=size, optimizer="adagrad")
            _, history = fit(algorithm, data, key=jax.random.key(0), steps=5, progress=False)
            seconds = float(np.median(history.seconds[1:]))
            results[f"{make.__name__}, batches of {size}"] = {
                "epoch_s": seconds,
                "interactions_a_second": x.nnz / seconds,
            }
    record("accelerator", {f"minibatches, {x.nnz:,} interactions, 64 factors": results})


def test_int8_product():
    shapes = ((4096, 512), (512, 512))
    a, b = (jax.random.randint(jax.random.key(seed), shape, -127, 128, jnp.int8) for seed, shape in enumerate(shapes))
    floats = a.astype(jnp.float32), b.astype(jnp.float32)
    calls = {
        f"affinax, {name}, s": ready(lambda a, b, name=name: int8.product(a, b, implementation=name), a, b)
        for name in ("pallas", "reference")
    }
    calls |= {"XLA, float32, s": ready(lambda a, b: jnp.matmul(a, b.T, precision=EXACT), *floats)}
    record("accelerator", {"int8 product, 4,096 x 512 x 512": take_turns(None, calls, 20)})


@pytest.mark.parametrize("batch", [1, 1024])
def test_quantized_search(batch):
    queries, table, k = normal(0, batch, 128), normal(1, 200_000, 128), 100
    codes, scales = to_bytes(table)
    items = QuantizedRows(codes, scales, None, jnp.zeros((len(table), 0)), 128)

    def ours(implementation):
        return ready(lambda q, i: quantized_rows.search(q, i, k, implementation=implementation), queries, items)

    calls = {f"affinax, {name}, s": ours(name) for name in ("pallas", "reference")}
    calls |= {"float32 table, s": ready(lambda q, i: top_k.search(q, i, k), queries, table)}
    record("accelerator", {f"search in bytes, {batch} x 200,000 x 128, k = 100": take_turns(None, calls, 20)})


def test_attention():
    """32 sequences of 1,024 places, 8 heads of 64 numbers in bfloat16, forward and back."""
    q, k, v = (normal(seed, 32, 1024, 8, 64).astype(jnp.bfloat16) for seed in range(3))
    segments = jnp.zeros((32, 1024), jnp.int32)

    def slopes(attended):
        return ready(jax.grad(lambda q, k, v: jnp.sum(attended(q, k, v).astype(jnp.float32)), (0, 1, 2)), q, k, v)

    def ours(implementation):
        return slopes(lambda q, k, v: attention(q, k, v, segments, implementation=implementation))

    def of_jax(implementation):
        options = {"is_causal": True, "implementation": implementation}
        return slopes(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **options))

    calls = {f"affinax, {name}, s": ours(name) for name in ("pallas", "cudnn", "reference")}
    calls |= {f"jax.nn.dot_product_attention, {name}, s": of_jax(name) for name in ("xla", "cudnn")}
    record("accelerator", {"attention, 32 x 1,024 x 8 x 64, forward and back": take_turns(None, calls, 20)})
