"""Examples for models of click-through rates, out of MovieLens 1M."""

from __future__ import annotations

from typing import Any

import numpy as np

from affinax.datasets import movielens
from affinax.engine.data import Interactions

LIKED = 4.0
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def movielens_clicks(length: int = 50, seed: int = 0) -> dict[str, Any]:
    """Whether a user rates a film 4 or more, from ids, side tables and what the user liked before.

    The rows of MovieLens 1M are split at random, 8:1:1. A row's history is what its user liked strictly before it,
    among the rows for training alone, so that no label of another part is in it. Every field counts the values of the
    whole side table, of which each user and film has a row from the start.

    Returns:
        "train", "validation" and "test", each `{"fields": int32 [n, n_fields], "labels": float32 [n], "history":
        int32 [n, length]}`, with histories in order of time and padded with -1 on the left; "names" and "sizes" of the
        fields, and "item_field", the index of the one whose ids the histories hold.
    """
    x = movielens("1m")
    fields = _fields(x)
    labels = (x.values >= LIKED).astype(np.float32)
    order = np.random.default_rng(seed).permutation(x.nnz)
    ends = np.rint(np.cumsum(list(SHARES.values())) * x.nnz).astype(int)
    rows = dict(zip(SHARES, np.split(order, ends[:-1]), strict=True))
    table = np.stack([values for values, _ in fields.values()], axis=1)
    liked = rows["train"][labels[rows["train"]] > 0]
    parts = {
        part: {"fields": table[of], "labels": labels[of], "history": liked_before(x, liked, of, length)}
        for part, of in rows.items()
    }
    names = list(fields)
    sizes = [size for _, size in fields.values()]
    return parts | {"names": names, "sizes": sizes, "item_field": names.index("item")}


def liked_before(x: Interactions, liked: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """Items of the last `length` of the rows `liked` that have the user of a row and an earlier time; -1 for none."""
    time = x.timestamps - x.timestamps.min()
    span = time.max() + 1
    key = x.users.astype(np.int64) * span + time
    liked = liked[np.argsort(key[liked], kind="stable")]
    first = np.searchsorted(key[liked], x.users[rows] * span).astype(np.int32)  # of the user's
    end = np.searchsorted(key[liked], key[rows]).astype(np.int32)
    places = end[:, None] + np.arange(-length, 0, dtype=np.int32)
    items = x.items[liked].astype(np.int32)[np.maximum(places, 0)]
    items[places < first[:, None]] = -1
    return items


def _fields(x: Interactions) -> dict[str, tuple[np.ndarray, int]]:
    """Ids of every row, and how many there are, by the name of the field."""
    of_user, of_item = x.user_features, x.item_features
    tables = {name: (of_user[name].to_numpy(), x.users) for name in ("gender", "age", "occupation")}
    tables["genre"] = of_item["genres"].list.first().to_numpy(), x.items
    tables["year"] = of_item["title"].str.extract(r"\((\d{4})\)\s*$", 1).to_numpy(), x.items
    fields = {"user": (x.users, x.n_users), "item": (x.items, x.n_items)}
    for name, (values, index) in tables.items():
        vocabulary, codes = np.unique(values.astype(str), return_inverse=True)
        fields[name] = codes.astype(np.int32)[index], len(vocabulary)
    return fields
