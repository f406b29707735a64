"""Checkpoints: what was saved comes back, whole ones survive whatever happens, and nothing else is taken for one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from jax.sharding import NamedSharding, PartitionSpec

from affinax.engine import checkpoint
from affinax.engine.checkpoint import latest_step, read_manifest, restore_checkpoint, save_checkpoint
from affinax.engine.errors import CheckpointError


class Tables(NamedTuple):
    users: jax.Array
    items: jax.Array


def _state():
    return {
        "tables": Tables(jnp.arange(12.0).reshape(3, 4) / 7, jnp.ones((2, 2), jnp.bfloat16) * 1.5),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 3),
        "raw key": jax.random.key_data(jax.random.key(5)),
        "codes": [jnp.array([-128, 127], jnp.int8), jnp.array([True, False]), jnp.array([1, 2, 3], jnp.int4)],
        "empty": (jnp.zeros((0, 4)), np.zeros((3, 0)), jnp.zeros(0, jnp.bfloat16)),
        "numbers": (3, 2.5, True, 1 + 2j, np.float64(0.1), np.int8(-5), ml_dtypes.bfloat16(2.5)),
        "scalars": (jnp.float32(np.nan), np.array(2**62), jnp.uint32(2**32 - 1)),
        "host": {"wide": np.array([0.1, -0.0, np.inf]), "transposed": np.arange(6).reshape(2, 3).T},
        "none": None,
    }


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _other(leaf):
    """Of the same kind, with other values."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(jax.random.key_data(leaf) * 0, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, np.ndarray | jax.Array):
        return np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else jnp.zeros_like(leaf)
    return type(leaf)(0)


def _bytes(leaf) -> bytes:
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def _assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert type(a) is type(b), path
        assert (np.shape(a), getattr(a, "dtype", None)) == (np.shape(b), getattr(b, "dtype", None)), path
        assert _bytes(a) == _bytes(b), path


def _folders(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path, capfd):
    state, content = _state(), {"name": "Ünïcode", "losses": [1.0, float("nan")], "nested": {"1": [None]}}
    save_checkpoint(tmp_path / "deep" / "run", 5, state, content=content)
    found = restore_checkpoint(tmp_path / "deep" / "run", jax.tree.map(_other, state))
    _assert_same(found.state, state)
    assert found.step == 5
    assert json.dumps(found.content) == json.dumps(content)
    assert latest_step(tmp_path / "deep" / "run") == 5
    manifest = read_manifest(tmp_path / "deep" / "run")
    assert manifest["leaves"]["['tables'].users"].keys() == {"shape", "dtype", "sha256"}
    assert capfd.readouterr() == ("", "")


def test_shapes_are_enough(tmp_path):
    state = {
        "table": jnp.arange(6, dtype=jnp.int8),
        "key": jax.random.key(1),
        "keys": jax.random.split(jax.random.key(2)),
    }
    save_checkpoint(tmp_path, 0, state)
    _assert_same(restore_checkpoint(tmp_path, jax.eval_shape(lambda: state)).state, state)


@pytest.mark.parametrize("state", [jnp.arange(3), 4, {}, [], {"a": np.zeros((0, 2))}])
def test_states_that_are_hardly_any(tmp_path, state):
    save_checkpoint(tmp_path, 0, state)
    _assert_same(restore_checkpoint(tmp_path, state).state, state)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]).flatmap(
            lambda dtype: arrays_of.arrays(
                dtype, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
            )
        ),
        max_size=3,
    )
)
def test_any_arrays(tmp_path, state):
    save_checkpoint(tmp_path, 1, state)
    _assert_same(restore_checkpoint(tmp_path, jax.tree.map(np.zeros_like, state)).state, state)


def test_sharding_is_that_of_like(tmp_path):
    mesh = jax.make_mesh((4,), ("d",))
    rows, columns, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("d",), (None, "d"), ()))
    table, keys = jnp.arange(32.0).reshape(8, 4), jax.random.split(jax.random.key(0), 8)
    state = {"table": jax.device_put(table, rows), "keys": jax.device_put(keys, rows), "count": jnp.int32(3)}
    save_checkpoint(tmp_path, 0, state)
    for sharding in (rows, columns, whole, jax.sharding.SingleDeviceSharding(jax.devices()[2])):
        like = {**state, "table": jax.device_put(table * 0, sharding)}
        found = restore_checkpoint(tmp_path, like).state
        _assert_same(found, state)
        assert found["table"].sharding == sharding
        assert found["keys"].sharding == rows
    struct = jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=columns)
    assert restore_checkpoint(tmp_path, {**state, "table": struct}).state["table"].sharding == columns
    # A number that was bound to no device still is not, and may be computed with beside arrays on four.
    found = restore_checkpoint(tmp_path, state).state
    assert not found["count"].committed
    jax.jit(lambda state: state["table"] * state["count"])(found)


def test_no_copy_stays_on_the_host(tmp_path):
    mesh = jax.make_mesh((4,), ("d",))
    table = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, PartitionSpec("d")))
    save_checkpoint(tmp_path, 0, table)
    assert table._npy_value is None


def test_inside_an_event_loop(tmp_path):
    async def save():
        save_checkpoint(tmp_path, 0, jnp.arange(3))
        return restore_checkpoint(tmp_path, jnp.zeros(3, jnp.int32)).state

    _assert_same(asyncio.run(save()), jnp.arange(3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w": jnp.zeros(4)}, r"\['w'\] is float32 \[3\] in it, and float32 \[4\] here"),
        ({"w": jnp.zeros(3, jnp.bfloat16)}, r"\['w'\] is float32 \[3\] in it, and bfloat16 \[3\] here"),
        ({"w": np.zeros(3)}, r"\['w'\] is float32 \[3\] in it, and float64 \[3\] here"),
        ({"w": [jnp.zeros(3)]}, r"\['w'\]\[0\] is missing in it, and float32 \[3\] here"),
        ({"more": 1}, r"\['more'\] is missing in it, and int64 \[\] here"),
        ({"key": jax.random.key(0, impl="rbg")}, r"\['key'\] is key<fry> \[\] in it, and key<rbg> \[\] here"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"\['key'\] is key<fry> \[\] in it, and uint32 \[2\] here"),
        ({"none": None}, None),
    ],
)
def test_another_model(tmp_path, change, said):
    state = {"key": jax.random.key(0), "w": jnp.ones(3)}
    save_checkpoint(tmp_path, 2, state)
    if said is None:
        restore_checkpoint(tmp_path, state | change)
        return
    with pytest.raises(CheckpointError, match=rf"step-000000000002 is of another model: {said}"):
        restore_checkpoint(tmp_path, state | change)
    with pytest.raises(CheckpointError, match=r"\['key'\] is key<fry> \[\] in it, and missing here"):
        restore_checkpoint(tmp_path, {"w": jnp.ones(3)})


@pytest.mark.parametrize("leaf", ["text", np.array(["a"]), object(), 2**70, np.array([{}]), np.zeros(1, "M8[s]")])
def test_what_cannot_be_stored(tmp_path, leaf):
    with pytest.raises(
        ValueError, match=r"\['a'\]\[1\] is .*; a checkpoint holds keys of jax.random, Python's numbers"
    ):
        save_checkpoint(tmp_path / "run", 0, {"a": [1, leaf]})
    assert not (tmp_path / "run").exists()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="step=-1 must be at least 0 and keep=2"):
        save_checkpoint(tmp_path, -1, {})
    with pytest.raises(ValueError, match="keep=0 at least 1"):
        save_checkpoint(tmp_path, 0, {}, keep=0)
    with pytest.raises(ValueError, match="content that JSON cannot hold"):
        save_checkpoint(tmp_path, 0, {}, content={"key": jax.random.key(0)})
    assert _folders(tmp_path) == []


def test_other_folders_are_not_written_to(tmp_path):
    (tmp_path / "step-notes").write_text("mine")
    with pytest.raises(CheckpointError, match="holds other files, such as step-notes; choose another folder"):
        save_checkpoint(tmp_path, 0, {})
    with pytest.raises(CheckpointError, match="step-notes is a file; checkpoints are saved in a folder"):
        save_checkpoint(tmp_path / "step-notes", 0, {})
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "step-notes"):
        assert latest_step(folder) is None
        with pytest.raises(CheckpointError, match="has no checkpoint"):
            restore_checkpoint(folder, {})
    assert _folders(tmp_path) == ["step-notes"]


def test_the_latest_are_kept(tmp_path):
    for step in (1, 5, 10**12):
        save_checkpoint(tmp_path, step, jnp.full(2, step, jnp.float32))
    assert _folders(tmp_path) == ["step-000000000005", "step-1000000000000"]
    assert latest_step(tmp_path) == 10**12
    assert restore_checkpoint(tmp_path, jnp.zeros(2), step=5).state[0] == 5
    with pytest.raises(
        CheckpointError, match=r"has no checkpoint of step 1; it has those of steps \[5, 1000000000000\]"
    ):
        restore_checkpoint(tmp_path, jnp.zeros(2), step=1)
    # Training that was taken up at an earlier step does not lose what it saves.
    save_checkpoint(tmp_path, 3, jnp.zeros(2))
    assert _folders(tmp_path) == ["step-000000000003", "step-1000000000000"]
    save_checkpoint(tmp_path, 4, jnp.zeros(2), keep=1)
    assert _folders(tmp_path) == ["step-000000000004"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    for number in range(3):
        save_checkpoint(tmp_path, 1, jnp.full(2, number, jnp.float32), content={"number": number})
        assert len(_folders(tmp_path)) == 1
        found = restore_checkpoint(tmp_path, jnp.zeros(2), step=1)
        assert (found.state[0], found.content) == (number, {"number": number})


@pytest.mark.parametrize("where", ["write_arrays", "_sync", "_remove"])
def test_a_crash_while_replacing_leaves_the_old_or_the_new(tmp_path, monkeypatch, where):
    save_checkpoint(tmp_path, 1, jnp.zeros(2))
    save_checkpoint(tmp_path, 2, jnp.zeros(2))

    def crashes(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, where, crashes)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, jnp.ones(2))
    monkeypatch.undo()
    assert restore_checkpoint(tmp_path, jnp.zeros(2)).state[0] == (where == "_remove")
    assert restore_checkpoint(tmp_path, jnp.zeros(2), step=1).state[0] == 0
    save_checkpoint(tmp_path, 2, jnp.full(2, 7.0))
    assert restore_checkpoint(tmp_path, jnp.zeros(2)).state[0] == 7
    assert len(_folders(tmp_path)) == 2


def _damaged(folder, state, expected) -> bool:
    """Whether restoring is refused; if it is not, all must be as it was saved."""
    try:
        found = restore_checkpoint(folder, state)
    except CheckpointError as error:
        assert str(folder) in str(error)  # noqa: PT017
        return True
    _assert_same(found.state, expected)
    return False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of reads that orbax gave up
def test_flipped_bytes_truncations_and_missing_files(tmp_path, capfd):
    state = {"table": jnp.arange(40.0).reshape(8, 5), "key": jax.random.key(0), "codes": np.arange(9, dtype=np.int8)}
    save_checkpoint(tmp_path, 1, state)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    chosen, refused = random.Random(0), 0
    for path in files:
        data = path.read_bytes()
        for place in chosen.sample(range(len(data)), min(len(data), 12)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
            is_refused = _damaged(tmp_path, state, state)
            refused += is_refused
            assert is_refused or path.name != "manifest.json"
        for length in {0, len(data) // 2, len(data) - 1} - {len(data)}:
            path.write_bytes(data[:length])
            refused += _damaged(tmp_path, state, state)
        path.unlink()
        refused += _damaged(tmp_path, state, state)
        path.write_bytes(data)
    assert refused > 40
    assert not _damaged(tmp_path, state, state)
    shutil.rmtree(tmp_path / "step-000000000001" / "arrays")
    with pytest.raises(CheckpointError, match="step-000000000001 is damaged, or cannot be read"):
        restore_checkpoint(tmp_path, state)
    assert capfd.readouterr() == ("", "")


def test_a_swapped_array_is_named(tmp_path):
    save_checkpoint(tmp_path / "a", 1, {"key": jnp.zeros(3), "table": jnp.zeros(3)})
    save_checkpoint(tmp_path / "b", 1, {"key": jnp.zeros(3), "table": jnp.ones(3)})
    arrays = tmp_path / "a" / "step-000000000001" / "arrays"
    shutil.rmtree(arrays)
    (tmp_path / "b" / "step-000000000001" / "arrays").rename(arrays)
    with pytest.raises(CheckpointError, match=r"is damaged: \['table'\] is not what was saved"):
        restore_checkpoint(tmp_path / "a", {"key": jnp.zeros(3), "table": jnp.zeros(3)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("[]", "not of an affinax checkpoint"),
        ('"affinax-checkpoint"', "not of an affinax checkpoint"),
        ('{"format": "x"}', "not of an affinax checkpoint"),
        ('{"format": "affinax-checkpoint", "version": 2}', "is of version 2; this affinax reads 1"),
        ('{"format": "affinax-checkpoint", "version": 1}', "its manifest.json does not match"),
    ],
)
def test_foreign_manifests(tmp_path, text, said):
    save_checkpoint(tmp_path, 1, jnp.zeros(2))
    path = tmp_path / "step-000000000001" / "manifest.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_manifest(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"its manifest\.json cannot be read"):
        restore_checkpoint(tmp_path, jnp.zeros(2))


def test_a_renamed_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, jnp.zeros(2))
    (tmp_path / "step-000000000001").rename(tmp_path / "step-000000000004")
    with pytest.raises(CheckpointError, match="step-000000000004 was renamed: it is of step 1"):
        restore_checkpoint(tmp_path, jnp.zeros(2))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or os.name != "posix" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root on Linux only")
    yield folder
    subprocess.run([shutil.which("umount"), str(folder)], check=True)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_full_disk_leaves_the_last_one(small_disk, array, capfd):
    noise = np.random.default_rng(0).random((600, 500), np.float32)
    state = array(noise[:100])
    save_checkpoint(small_disk / "run", 1, state)
    message = r"the checkpoint of step .* could not be written \(No space left on device\); that of step 1 is whole"
    for step, rows in ((2, 600), (1, 560)):
        with pytest.raises(OSError, match=message) as raised:
            save_checkpoint(small_disk / "run", step, array(noise[:rows]))
        assert raised.value.errno == errno.ENOSPC
        assert _folders(small_disk / "run") == ["step-000000000001"]
        _assert_same(restore_checkpoint(small_disk / "run", state).state, state)
    # Full to the last byte, where not even the small files can be written.
    with contextlib.suppress(OSError):
        (small_disk / "rest").write_bytes(bytes(2**20))
    with pytest.raises(OSError, match=message):
        save_checkpoint(small_disk / "run", 2, array(noise[:1]))
    (small_disk / "rest").unlink()
    save_checkpoint(small_disk / "run", 2, state)
    assert latest_step(small_disk / "run") == 2
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\); there is none before it"):
        save_checkpoint(small_disk / "other", 2, array(noise))
    assert capfd.readouterr() == ("", "")


_SAVES = """
import itertools, sys
import jax.numpy as jnp
from affinax.engine.checkpoint import save_checkpoint
for number in itertools.count(int(sys.argv[2])):
    save_checkpoint(sys.argv[1], number // 2, {"w": jnp.full((200, 50), float(number))}, content={"number": number})
    print(number, flush=True)
"""


def test_killed_at_any_moment(tmp_path):
    """A process that saves, each step twice, is killed; the last that it told of, or a later one, restores."""
    moments, last = random.Random(int.from_bytes(os.urandom(4))), -1
    for _ in range(3):
        command = [sys.executable, "-c", _SAVES, str(tmp_path), str(last + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline()]
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        lines += process.communicate()[0].splitlines()
        told = int([line for line in lines if line.strip()][-1])
        found = restore_checkpoint(tmp_path, {"w": jnp.zeros((200, 50))})
        number = found.content["number"]
        assert number in (told, told + 1)
        assert found.step == number // 2
        assert (found.state["w"] == number).all()
        for step in {int(path.name[5:17]) for path in tmp_path.glob("step-*")}:
            restore_checkpoint(tmp_path, {"w": jnp.zeros((200, 50))}, step=step)
        last = number


def test_orbax_is_imported_when_it_is_needed():
    program = "import sys, affinax.engine.checkpoint; assert not {'orbax', 'tensorstore'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
