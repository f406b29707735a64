"""Interactions of a given shape with heavy tails on both sides, for speed measurements."""

from __future__ import annotations

import numpy as np

from affinax.engine.data import Interactions
from affinax.kernels import csr


def heavy_tailed(n_users: int, n_items: int, nnz: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs whose user activity is log-normal and whose item popularity follows a power law.

    Returns:
        `(users, items, values)`, int64, int64 and float32 in 1..5, about `nnz` each (duplicates are
        drawn again until fewer than one in a thousand is missing).
    """
    rng = np.random.default_rng(seed)
    activity = rng.lognormal(0.0, 1.1, n_users) + 0.15
    popularity = 1.0 / (np.arange(n_items) + 30.0) ** 0.95
    rng.shuffle(popularity)
    users_cdf, items_cdf = np.cumsum(activity / activity.sum()), np.cumsum(popularity / popularity.sum())
    keys = np.empty(0, np.int64)
    while len(keys) < 0.999 * nnz:
        missing = int(1.05 * (nnz - len(keys))) + 1000
        users = np.searchsorted(users_cdf, rng.random(missing)).clip(max=n_users - 1)
        items = np.searchsorted(items_cdf, rng.random(missing)).clip(max=n_items - 1)
        keys = np.unique(np.concatenate([keys, users * n_items + items]))
    if len(keys) > nnz:
        keys = np.sort(rng.permutation(keys)[:nnz])
    values = rng.integers(1, 6, len(keys)).astype(np.float32)
    return keys // n_items, keys % n_items, values


def fractal(nnz: int, n_users: int, n_items: int, seed: int = 0) -> Interactions:
    """Fractal (Kronecker) expansion of ML-1M to about `nnz` distinct pairs, folded into a fixed shape.

    A pair of the expansion is a pair of ML-1M beside a pair of a second, smaller copy of its row and column
    distribution, so that both tails grow as in the source (Belletti et al. 2019, arXiv 1901.08910, section 3).
    Folding to the given shape keeps the tables, and so what fits a cache, the same at every size.
    """
    from affinax.datasets import movielens

    source, rng = movielens("1m"), np.random.default_rng(seed)
    users, items = np.empty(0, np.int32), np.empty(0, np.int32)
    copies_u, copies_i = -(-n_users // source.n_users), -(-n_items // source.n_items)
    while len(users) < 0.99 * nnz:
        missing = int(1.5 * (nnz - len(users))) + 1000
        outer, inner = rng.integers(0, source.nnz, (2, missing))
        users = np.append(users, (source.users[outer] * copies_u + source.users[inner] % copies_u) % n_users)
        items = np.append(items, (source.items[outer] * copies_i + source.items[inner] % copies_i) % n_items)
        order, _ = csr.sort_pairs(users, items, n_users, n_items)
        order = order[csr.first_in_group(users, items, order)]
        users, items = users[order], items[order]
    if len(users) > nnz:
        kept = np.sort(rng.choice(len(users), nnz, replace=False))
        users, items = users[kept], items[kept]
    return Interactions.from_coo(users, items, n_users=n_users, n_items=n_items)
