"""Strict JAX, checked shapes: what the suite asks of every test."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # for shard_map; all else runs on the first
# Most of the suite's time is XLA's compiler. Here it leaves out what makes programs fast, and what it compiled, however
# small, is kept on disk for the next run.
for name, value in {
    "jax_disable_most_optimizations": True,
    "jax_traceback_in_locations_limit": 0,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)  # for processes that tests start
flags = ["--xla_cpu_parallel_codegen_split_count=1"]  # threads to compile one program with: workers have their own
if jax.__version_info__ < (0, 11):  # later ones do not know the flag
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

# Tracing makes objects by the million, few of them garbage: a tenth of the suite's time went into looking for it.
gc.set_threshold(200_000, 20, 20)

# Those that take longest, which begin first: no worker then waits for one of them at the end.
LONGEST = (
    "test_item_content.py",
    "test_bayesian.py",
    "test_sequence_recommenders.py",
    "test_sequential.py",
    "test_doctests.py",
    "test_sgd.py",
    "test_regression.py",
    "test_cli.py",
    "test_recommender.py",
    "test_fusion.py",
    "test_models.py",
    "test_examples.py",
    "test_training.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of one class, and of one file outside classes, go to one worker: there the same programs compile once."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return LoadScopeScheduling(config, log)


def pytest_collection_modifyitems(items):
    """The longest files go first; on an accelerator, what holds on CPU alone goes only with JAX_PLATFORMS=cpu."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if jax.default_backend() == "cpu":
        return
    skip = pytest.mark.skip(reason=f"holds on CPU, this process computes on {jax.default_backend()}")
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("implementation") == "numba" or item.get_closest_marker("on_cpu"):
            item.add_marker(skip)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_bounded():
    """Each of the thousands compiled here has mappings of memory, of which Linux gives a process 65,530."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


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


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(arguments) -> (status, out, err)` of one command, in this process."""

    from affinax.__main__ import main

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["affinax", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return command
