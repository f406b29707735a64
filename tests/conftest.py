"""Strict JAX, checked shapes: what the suite asks of every test."""

from __future__ import annotations

import os

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # for shard_map; all else runs on the first
# Most of the suite's time is XLA's compiler. Here it leaves out what makes programs fast, and what it compiled, however
# small, is kept on disk for the next run.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
if jax.__version_info__ < (0, 11):  # later ones do not know the flag
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of one class, and of one file outside classes, go to one worker: there the same programs compile once."""
    from xdist.scheduler import LoadScopeScheduling

    return LoadScopeScheduling(config, log)


def pytest_collection_modifyitems(items):
    """On an accelerator, what holds on CPU alone is not tried; JAX_PLATFORMS=cpu tries it."""
    if jax.default_backend() == "cpu":
        return
    skip = pytest.mark.skip(reason=f"holds on CPU, this process computes on {jax.default_backend()}")
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("implementation") == "numba" or item.get_closest_marker("on_cpu"):
            item.add_marker(skip)


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
