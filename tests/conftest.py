"""Strict JAX, checked shapes: what the suite asks of every test."""

from __future__ import annotations

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)  # for shard_map; all else runs on the first


@pytest.fixture
def strict_dtypes():
    """Mixed dtypes raise: for kernel and engine tests."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def movielens_100k():
    """MovieLens 100K, or a skip where it can be neither downloaded nor read."""
    import affinax
    from affinax.engine.errors import InteractionError

    try:
        return affinax.datasets.movielens("100k")
    except InteractionError as error:
        pytest.skip(f"MovieLens 100K is not to be had: {error}")
