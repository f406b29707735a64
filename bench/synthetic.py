"""Interactions of a given shape with heavy tails on both sides, for speed measurements."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

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


def fractal(
    nnz: int, n_users: int, n_items: int, *, copies: tuple[int, int] | None = None, seed: int = 0
) -> Interactions:
    """Fractal (Kronecker) expansion of ML-1M to `nnz` distinct pairs, within one in a hundred, in a fixed shape.

    Each user of ML-1M becomes `copies[0]` users and each item `copies[1]` items (None: as many as the shape asks
    for), and a pair becomes each pair of copies with the chance that such copies meet in ML-1M itself, so that both
    tails grow as in the source (Belletti et al. 2019, arXiv 1901.08910, section 3). Folding (modulo) to the given
    shape keeps the tables, and so what fits a cache, the same at every size.
    """
    from affinax.datasets import movielens

    source, rng = movielens("1m"), np.random.default_rng(seed)
    of_user, of_item = copies or (-(-n_users // source.n_users), -(-n_items // source.n_items))
    cells = source.users % of_user * of_item + source.items % of_item
    weight = np.bincount(cells, minlength=of_user * of_item) / source.nnz

    def excess(draws: float, wanted: float) -> float:
        return -source.nnz * np.expm1(-draws * weight).sum() - wanted

    wanted = float(nnz)
    while True:  # in the fold some pairs meet: more are asked for, until as many as wanted are left
        draws = brentq(excess, 0.0, 1e9, (wanted,))
        users, items = [], []
        for cell, chance in enumerate(-np.expm1(-draws * weight)):
            pairs = np.flatnonzero(rng.random(source.nnz, np.float32) < chance)
            users.append((source.users[pairs] * of_user + cell // of_item) % n_users)
            items.append((source.items[pairs] * of_item + cell % of_item) % n_items)
        users, items = np.concatenate(users), np.concatenate(items)
        order, _ = csr.sort_pairs(users, items, n_users, n_items)
        order = order[csr.first_in_group(users, items, order)]
        if abs(len(order) - nnz) <= 0.01 * nnz:
            return Interactions.from_coo(users[order], items[order], n_users=n_users, n_items=n_items)
        wanted *= nnz / len(order)
