"""Sequences for benches: MovieLens 1M and Amazon Beauty, as the published comparisons have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from affinax.datasets import movielens_sequences
from affinax.engine.data import Sequences

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BEAUTY = SHARED / "amazon-beauty" / "sequences.txt"


def movielens_1m(least: int = 5) -> Sequences:
    """Of items with so many ratings or more, stable sorted by time."""
    x = movielens_sequences("1m")
    counts = np.bincount(x.items, minlength=x.n_items)
    keep = counts[x.items] >= least
    _, items = np.unique(x.items[keep], return_inverse=True)
    assert x.timestamps is not None
    return Sequences.from_events(x.users[keep], items, x.timestamps[keep])


def amazon_beauty() -> Sequences:
    """The 5-core, in the order of the file."""
    rows = [line.split() for line in BEAUTY.read_text().splitlines()]
    users = np.repeat(np.arange(len(rows)), [len(row) - 1 for row in rows])
    _, items = np.unique(np.array([item for row in rows for item in row[1:]], np.int64), return_inverse=True)
    return Sequences.from_events(users, items)
