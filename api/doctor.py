"""`python -m affinax doctor`: what this installation has, and whether its kernels compute what they should."""

from __future__ import annotations

import importlib.metadata
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from .kernels import least_squares, sparse_top_k, threads, top_k
from .kernels.csr import CSR
from .kernels.op import Implementation, implementations
from .version import __version__

_PACKAGES = ("jax", "jaxlib", "numba", "numpy", "scipy", "polars", "safetensors", "tbb")


def run(seed: int = 0) -> bool:
    """Prints the findings; True where every kernel agrees with its reference and the thread layer is safe."""
    console = Console()
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} missing")
    console.print(f"affinax {__version__}, Python {platform.python_version()}, {platform.platform()}", highlight=False)
    console.print(", ".join(versions), highlight=False)
    console.print("devices: " + ", ".join(f"{d.platform}:{d.id} ({d.device_kind})" for d in jax.devices()))

    table = Table("kernel", "platform", "relative difference from the reference", "first call", "verdict")
    healthy = True
    checks = {least_squares.OP: _check_least_squares, top_k.OP: _check_top_k, sparse_top_k.OP: _check_sparse_top_k}
    for op, check in checks.items():
        for platform_name in implementations(op):
            began = time.perf_counter()
            name: Implementation = "numba" if platform_name == "cpu" else "pallas"
            try:
                difference, tolerance = check(name, np.random.default_rng(seed))
                good, shown = difference <= tolerance, f"{difference:.1e} (at most {tolerance:.0e})"
            except Exception as error:  # whatever goes wrong is the finding
                good, shown = False, f"{type(error).__name__}: {error}"
            healthy &= good
            seconds = f"{time.perf_counter() - began:.1f} s"
            table.add_row(op.name, f"{platform_name} ({name})", shown, seconds, "ok" if good else "WRONG")
    console.print(table)
    layer = threads.thread_layer()
    safe = layer in ("tbb", "omp")
    console.print(f"thread layer: {layer}" + ("" if safe else "; it is not safe for concurrent calls: pip install tbb"))
    healthy &= safe
    console.print("all is well" if healthy else "something is wrong: see above")
    return bool(healthy)


def _check_least_squares(name: Implementation, rng: np.random.Generator) -> tuple[float, float]:
    lengths = rng.integers(0, 40, 60)
    indptr = jnp.asarray(np.concatenate([[0], np.cumsum(lengths)]), jnp.int32)
    indices = jnp.asarray(rng.integers(0, 50, lengths.sum()), jnp.int32)
    table = jnp.asarray(rng.normal(size=(50, 16)), jnp.float32)
    one, l2 = jnp.ones(1), jnp.full(1, 0.5)

    def solve(implementation: Implementation) -> jax.Array:
        gram = 0.1 * table.T @ table
        return least_squares.solve(
            indptr, indices, one, one, table, gram, l2, solver="cholesky", implementation=implementation
        ).x

    expected = solve("reference")
    return float(jnp.abs(solve(name) - expected).max() / jnp.abs(expected).max()), 1e-4


def _check_top_k(name: Implementation, rng: np.random.Generator) -> tuple[float, float]:
    # Enough for every thread to have several blocks: what goes wrong among threads does not show on less.
    queries, items = (jnp.asarray(rng.normal(size=(n, 16)), jnp.float32) for n in (1000, 3000))
    found = top_k.search(queries, items, 10, implementation=name)
    return _difference(found, top_k.search(queries, items, 10, implementation="reference"))


def _check_sparse_top_k(name: Implementation, rng: np.random.Generator) -> tuple[float, float]:
    def rows(n: int, width: int) -> CSR:
        indices = rng.integers(0, width, (n, 20))
        values = rng.integers(1, 9, 20 * n)  # whose sums are exact, in whatever order
        return CSR(
            jnp.arange(0, 20 * n + 1, 20, dtype=jnp.int32),
            jnp.asarray(indices.ravel(), jnp.int32),
            jnp.asarray(values, jnp.float32),
        )

    queries, table, asked = rows(500, 300), rows(300, 1000), jnp.arange(500, dtype=jnp.int32)
    found, expected = (
        sparse_top_k.search(queries, asked, table, 10, n_columns=1000, implementation=implementation)
        for implementation in (name, "reference")
    )
    return _difference(found, expected)


def _difference(found: tuple, expected: tuple) -> tuple[float, float]:
    wrong = float((found[0] != expected[0]).mean())
    return max(float(jnp.abs(found[1] - expected[1]).max()), wrong), 1e-4
