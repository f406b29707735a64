"""What the measurements share."""

from __future__ import annotations

import numpy as np
import pytest

from affinax.engine.data import Interactions

from .record import RUNS
from .synthetic import heavy_tailed


@pytest.fixture(scope="session")
def ml20m_shaped() -> Interactions:
    """138,000 x 27,000 with about 20 M interactions, kept under .runs/ between runs."""
    path = RUNS / "ml20m_shaped.npz"
    if not path.exists():
        RUNS.mkdir(exist_ok=True)
        np.savez(path, *heavy_tailed(138_000, 27_000, 20_000_000))
    users, items, values = np.load(path).values()
    return Interactions.from_coo(users, items, values, n_users=138_000, n_items=27_000)
