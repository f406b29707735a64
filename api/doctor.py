"""`python -m affinax doctor`: what this installation has, and whether its kernels compute what they should."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .engine.compression import quantize
from .engine.data import Interactions
from .kernels import (
    attention,
    co_rated,
    cross_entropy,
    cross_network,
    deep_cross,
    dense,
    embedding,
    int8,
    int8_tiles,
    least_squares,
    neighbor_mean,
    pair_products,
    quantized_rows,
    sampling,
    sgd,
    sparse_product,
    sparse_top_k,
    svd_plus_plus,
    threads,
    top_k,
    weighted_gramian,
)
from .kernels.csr import CSR, SparseMatrix, contains, entries
from .kernels.op import Implementation, implementations
from .version import __version__

_PACKAGES = ("jax", "jaxlib", "numba", "numpy", "scipy", "polars", "safetensors", "tbb")
_TOLERANCE = 1e-4


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

    table = Table("kernel", "platform", "relative difference from the reference", "seconds", "verdict")
    healthy = True
    for op, check in track(_CHECKS.items(), "comparing kernels", console=console, transient=True):
        for platform_name in implementations(op):
            if op in _IN_16_BITS and platform_name != "cpu":
                continue  # where results agree to less
            began = time.perf_counter()
            name: Implementation = "numba" if platform_name == "cpu" else "pallas"
            try:
                found, expected = (check(np.random.default_rng(seed), which) for which in (name, "reference"))
                difference = _difference(found, expected)
                good, shown = difference <= _TOLERANCE, f"{difference:.1e} (at most {_TOLERANCE:.0e})"
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


def _ratings(rng: np.random.Generator) -> SparseMatrix:
    """300 users, 1,000 items; products and sums of the values are exact, in whatever order."""
    users, items = np.nonzero(rng.random((300, 1000)) < 0.05)
    values = rng.integers(1, 6, len(users))
    return Interactions.from_coo(users, items, values, n_users=300, n_items=1000).to_device()


def _table(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _least_squares(rng: np.random.Generator, name: Implementation) -> Any:
    (indptr, indices, _), table, one = _ratings(rng).by_user, _table(rng, 1000, 16), jnp.ones(1)
    gram, l2 = 0.1 * table.T @ table, jnp.full(1, 0.5)
    return least_squares.solve(indptr, indices, one, one, table, gram, l2, solver="cholesky", implementation=name).x


def _top_k(rng: np.random.Generator, name: Implementation) -> Any:
    # Enough for every thread to have several blocks: what goes wrong among threads does not show on less.
    return top_k.search(_table(rng, 1000, 16), _table(rng, 3000, 16), 10, implementation=name)


def _sparse_top_k(rng: np.random.Generator, name: Implementation) -> Any:
    by_user, by_item = _ratings(rng)
    asked = jnp.arange(by_item.n_rows, dtype=jnp.int32)
    return sparse_top_k.search(by_item, asked, by_user, 10, n_columns=by_item.n_rows, implementation=name)


def _sparse_product(rng: np.random.Generator, name: Implementation) -> Any:
    return sparse_product.multiply(_table(rng, 64, 300), _ratings(rng).by_user, 1000, implementation=name)


def _weighted_gramian(rng: np.random.Generator, name: Implementation) -> Any:
    return weighted_gramian.compute(_ratings(rng).by_user, _table(rng, 300) ** 2, 1000, implementation=name)


def _co_rated(rng: np.random.Generator, name: Implementation) -> Any:
    data = _ratings(rng)
    return co_rated.search(data, jnp.arange(data.by_user.n_rows, dtype=jnp.int32), 10, implementation=name)


def _neighbor_mean(rng: np.random.Generator, name: Implementation) -> Any:
    data = _ratings(rng)
    nearest = jnp.asarray(rng.integers(0, 300, 300 * 20), jnp.int32)
    similar = CSR(jnp.arange(0, 300 * 20 + 1, 20, dtype=jnp.int32), nearest, jnp.ones(1))
    users, items = (jnp.asarray(rng.integers(0, n, 9000), jnp.int32) for n in data.shape)
    return neighbor_mean.weighted_mean(similar, data.by_item, users, items, 5, implementation=name)


def _sgd(rng: np.random.Generator, name: Implementation) -> Any:
    data = _ratings(rng)
    tables = sgd.Tables(_table(rng, 300, 8), _table(rng, 1000, 8), _table(rng, 300), _table(rng, 1000))
    order = jnp.asarray(rng.permutation(data.by_user.nnz), jnp.int32)
    nothing = jnp.zeros((len(order), 0), jnp.int32)
    return sgd.sweep(
        tables, data.by_user, order, nothing, loss="squared", learning_rate=0.01, l2=0.1, implementation=name
    )


def _svd_plus_plus(rng: np.random.Generator, name: Implementation) -> Any:
    data = _ratings(rng)
    sizes = (300, 8), (1000, 8), (1000, 8), (300,), (1000,)
    tables = svd_plus_plus.Tables(*(0.1 * _table(rng, *size) for size in sizes))
    order = jnp.arange(300, dtype=jnp.int32)
    return svd_plus_plus.sweep(tables, data.by_user, order, learning_rate=0.01, l2=0.1, mean=3.0, implementation=name)


def _dense(rng: np.random.Generator, name: Implementation) -> Any:
    return dense.network(_table(rng, 1000, 21), _layers(rng, 21, 64, 5), implementation=name)


def _dense_gradient(rng: np.random.Generator, name: Implementation) -> Any:
    given, slopes = (_table(rng, 1000, 21), _layers(rng, 21, 64, 5)), _table(rng, 1000, 5)
    return jax.vjp(lambda *arrays: dense.network(*arrays, implementation=name), *given)[1](slopes)


def _layers(rng: np.random.Generator, *widths: int) -> list[tuple[jax.Array, jax.Array]]:
    return [(_table(rng, k, n) / k**0.5, _table(rng, 1, n)[0]) for k, n in itertools.pairwise(widths)]


def _cross(rng: np.random.Generator, name: Implementation) -> Any:
    return cross_network.cross(*_crossed(rng), implementation=name)


def _cross_gradient(rng: np.random.Generator, name: Implementation) -> Any:
    given, slopes = _crossed(rng), _table(rng, 1000, 21)
    return jax.vjp(lambda *arrays: cross_network.cross(*arrays, implementation=name), *given)[1](slopes)


def _crossed(rng: np.random.Generator) -> tuple[jax.Array, jax.Array, jax.Array]:
    weights, biases = (jnp.stack(arrays) for arrays in zip(*_layers(rng, 21, 21, 21), strict=True))
    return _table(rng, 1000, 21), weights, biases


def _pair_products(rng: np.random.Generator, name: Implementation) -> Any:
    return pair_products.pair_products(_table(rng, 7000, 16).reshape(1000, 7, 16), implementation=name)


def _pair_products_gradient(rng: np.random.Generator, name: Implementation) -> Any:
    vectors, slopes = _table(rng, 7000, 16).reshape(1000, 7, 16), _table(rng, 1000, 21)
    return jax.vjp(lambda v: pair_products.pair_products(v, implementation=name), vectors)[1](slopes)


def _attention(rng: np.random.Generator, name: Implementation) -> Any:
    segments = jnp.zeros((8, 50), jnp.int32)
    return attention.attention(*_attended(rng), segments, causal=True, implementation=name)


def _attention_gradient(rng: np.random.Generator, name: Implementation) -> Any:
    given, slopes = _attended(rng), _table(rng, 8 * 50 * 2, 16).reshape(8, 50, 2, 16)
    attend = functools.partial(attention.attention, segments=jnp.zeros((8, 50), jnp.int32), causal=True)
    return jax.vjp(functools.partial(attend, implementation=name), *given)[1](slopes)


def _attended(rng: np.random.Generator) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v = (_table(rng, 8 * 50 * 2, 16).reshape(8, 50, 2, 16) for _ in range(3))
    return q, k, v


def _cross_entropy(rng: np.random.Generator, name: Implementation) -> Any:
    labels = jnp.asarray(rng.integers(-1, 3000, 1000), jnp.int32)
    given = _table(rng, 1000, 16), _table(rng, 3000, 16)
    return jax.value_and_grad(
        lambda hidden, table: cross_entropy.cross_entropy(hidden, table, labels, implementation=name), (0, 1)
    )(*given)


def _deep_cross(rng: np.random.Generator, name: Implementation) -> Any:
    return deep_cross.logits(*_deeply_crossed(rng), implementation=name)


def _deep_cross_gradient(rng: np.random.Generator, name: Implementation) -> Any:
    slopes = _table(rng, 1000)
    given = _deeply_crossed(rng)
    return jax.vjp(functools.partial(deep_cross.logits, implementation=name), *given)[1](slopes)


def _deeply_crossed(rng: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    x, weights, biases = _crossed(rng)
    return x, (weights, biases), _layers(rng, 21, 32, 16), (_table(rng, 21), _table(rng, 16))


def _int8(rng: np.random.Generator, name: Implementation) -> Any:
    a, b = (jnp.asarray(rng.integers(-127, 128, (n, 100)), jnp.int8) for n in (300, 200))
    return int8.product(a, b, implementation=name)


def _quantized_rows(rng: np.random.Generator, name: Implementation) -> Any:
    queries, items = _table(rng, 40, 70), _table(rng, 3000, 70)
    tables = [quantize(items, kind, symmetric=symmetric) for kind in ("int8", "int4") for symmetric in (True, False)]
    return [quantized_rows.search(q, t, 10, implementation=name) for q in (queries, queries[:1]) for t in tables]


def _bags(rng: np.random.Generator) -> CSR:
    """10,000 of a thousand rows, which have many entries each, with weights."""
    weights = jnp.asarray(rng.uniform(0.5, 2.0, 60_000), jnp.float32)
    indices = jnp.asarray(rng.integers(-1, 1000, 60_000), jnp.int32)
    return CSR(jnp.arange(0, 60_001, 6, dtype=jnp.int32), indices, weights)


def _lookup(rng: np.random.Generator, name: Implementation) -> Any:
    return embedding.lookup(_table(rng, 1000, 16), _bags(rng).indices, implementation=name)


def _lookup_gradient(rng: np.random.Generator, name: Implementation) -> Any:
    table, ids = _table(rng, 1000, 16), _bags(rng).indices
    slopes = _table(rng, 60_000, 16)
    return jax.vjp(lambda table: embedding.lookup(table, ids, implementation=name), table)[1](slopes)


def _bag(rng: np.random.Generator, name: Implementation) -> Any:
    return embedding.bag(_table(rng, 1000, 16), _bags(rng), mode="mean", implementation=name)


def _bag_gradient(argument: int, rng: np.random.Generator, name: Implementation) -> Any:
    bags, slopes = _bags(rng), _table(rng, 10_000, 16)

    def total(table: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.vdot(embedding.bag(table, bags._replace(values=weights), implementation=name), slopes)

    return jax.jit(jax.grad(total, argument))(_table(rng, 1000, 16), bags.values)


def _update(by_bags: bool, rng: np.random.Generator, name: Implementation) -> Any:
    table, bags = _table(rng, 1000, 16), _bags(rng)
    slots, ids = embedding.start_slots(table, "adam"), bags if by_bags else bags.indices[:10_000]
    return embedding.update_rows(
        table, slots, ids, _table(rng, 10_000, 16), optimizer="adam", learning_rate=0.1, implementation=name
    )


# Each implementation draws other numbers: what is compared is what has to be true of any.
def _permutation(rng: np.random.Generator, name: Implementation) -> Any:
    return jnp.sort(sampling.permutation(jax.random.key(0), 100_000, implementation=name))


def _stages(rng: np.random.Generator, name: Implementation) -> Any:
    data = _ratings(rng)
    order, bounds, _ = sampling.stages(jax.random.key(0), data.by_user, 1000, 8, implementation=name)
    row, _ = entries(data.by_user)
    block = jnp.searchsorted(bounds[:, 1:].ravel(), jnp.arange(len(order)), side="right")
    met = [
        jnp.zeros((64, n), bool).at[block, side[order]].set(True)
        for n, side in ((300, row), (1000, data.by_user.indices))
    ]
    in_stage = [rows.reshape(8, 8, -1).sum(axis=1).max() for rows in met]  # blocks of a stage that meet
    return jnp.sort(order), in_stage


def _negatives(rng: np.random.Generator, name: Implementation) -> Any:
    rows, asked = _ratings(rng).by_user, jnp.arange(300, dtype=jnp.int32)
    drawn = sampling.negatives(jax.random.key(0), rows, asked, 1000, 50, implementation=name)
    return contains(rows.indptr, rows.indices, asked, drawn)


_CHECKS = {
    least_squares.OP: _least_squares,
    top_k.OP: _top_k,
    sparse_top_k.OP: _sparse_top_k,
    sparse_product.OP: _sparse_product,
    weighted_gramian.OP: _weighted_gramian,
    co_rated.OP: _co_rated,
    neighbor_mean.OP: _neighbor_mean,
    sgd.OP: _sgd,
    svd_plus_plus.OP: _svd_plus_plus,
    attention.OP: _attention,
    attention.GRADIENT: _attention_gradient,
    cross_entropy.OP: _cross_entropy,
    dense.OP: _dense,
    dense.GRADIENT: _dense_gradient,
    cross_network.OP: _cross,
    cross_network.GRADIENT: _cross_gradient,
    deep_cross.OP: _deep_cross,
    deep_cross.GRADIENT: _deep_cross_gradient,
    pair_products.OP: _pair_products,
    pair_products.GRADIENT: _pair_products_gradient,
    embedding.LOOKUP: _lookup,
    embedding.LOOKUP_GRADIENT: _lookup_gradient,
    embedding.POOL: _bag,
    embedding.TABLE_GRADIENT: functools.partial(_bag_gradient, 0),
    embedding.WEIGHT_GRADIENT: functools.partial(_bag_gradient, 1),
    embedding.UPDATE: functools.partial(_update, False),
    embedding.UPDATE_BAGS: functools.partial(_update, True),
    sampling.PERMUTATION: _permutation,
    sampling.STAGES: _stages,
    sampling.NEGATIVES: _negatives,
}
if int8_tiles.available():  # else nothing is written for this CPU
    _CHECKS |= {int8.OP: _int8, quantized_rows.OP: _quantized_rows}
_IN_16_BITS = {attention.OP, attention.GRADIENT}  # on accelerators


def _difference(found: Any, expected: Any) -> float:
    """Of whole numbers the share that differs, of others the greatest difference, relative to the greatest of them."""
    worst = 0.0
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in ((np.asarray(a), np.asarray(b)) for a, b in pairs):
        if one.dtype.kind in "ib":
            worst = max(worst, float((one != other).mean()))
            continue
        with np.errstate(invalid="ignore"):  # of -inf, which is where fewer are found than were asked for
            gap = np.where(one == other, 0, np.abs(one - other))
        greatest = np.abs(other[np.isfinite(other)]).max(initial=1e-30)
        worst = max(worst, float(np.nan_to_num(gap, nan=np.inf).max() / greatest))
    return worst
