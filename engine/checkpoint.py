"""Checkpoints of training: arrays by orbax, under a manifest that vouches for each of them.

A checkpoint is a folder `step-<n>` with the arrays and a `manifest.json`. It is written under another name, synced to
disk and renamed, and only then are older ones removed: whenever the process is killed or the disk is full, a folder
of that name is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax

from .checkpoint_arrays import as_before, described, digest, named_leaves, raw, read_arrays, vouched, write_arrays
from .errors import CheckpointError

VERSION = 1
_FORMAT, _MANIFEST, _ARRAYS, _UNFINISHED = "affinax-checkpoint", "manifest.json", "arrays", ".unfinished-"
# One that replaces another of its step has a number behind the step: no rename replaces a folder that is not empty.
_NAME = re.compile(r"step-(\d{12,})(?:\.(\d+))?", re.ASCII)


class Checkpoint(NamedTuple):
    """What `restore_checkpoint` reads.

    Attributes:
        step: Of training.
        state: The pytree.
        content: What was stored beside it.
    """

    step: int
    state: Any
    content: dict[str, Any]


def save_checkpoint(
    folder: str | Path, step: int, state: Any, *, content: dict[str, Any] | None = None, keep: int = 2
) -> None:
    """Saves a pytree, atomically. One process at a time saves in a folder.

    Args:
        folder: Of the run's checkpoints; made if it is not there.
        step: Names the checkpoint; one of the same step is replaced.
        state: A pytree of arrays of numbers or bool, sharded or not, keys of `jax.random` and numbers.
        content: Anything JSON can hold.
        keep: How many checkpoints stay, at least 1: this one, and of the others those of the latest steps.

    Raises:
        CheckpointError: The folder holds other files.
        OSError: No space is left, say; the checkpoints before this one stay whole.
        ValueError: `step` below 0, `keep` below 1, a leaf that is none of the above or is spread over processes, or
            content that JSON cannot hold.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(folder, 7, {"w": np.arange(3)}, content={"seed": 0})
    ...     restore_checkpoint(folder, {"w": np.zeros(3, int)})
    Checkpoint(step=7, state={'w': array([0, 1, 2])}, content={'seed': 0})
    """
    folder = Path(folder)
    if step < 0 or keep < 1:
        raise ValueError(f"{step=} must be at least 0 and {keep=} at least 1")
    _check_ours(folder)
    leaves = named_leaves(state)
    manifest = {"format": _FORMAT, "version": VERSION, "step": step}
    manifest |= {"leaves": {name: vouched(name, leaf) for name, leaf in leaves.items()}, "content": content or {}}
    encoded = _encoded(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    before = _found(folder)
    newest = {number: generation for number, generation, _ in before}
    name = f"step-{step:012d}" + (f".{newest[step] + 1}" if step in newest else "")
    unfinished = folder / f"{_UNFINISHED}{secrets.token_hex(8)}"
    try:
        unfinished.mkdir()
        write_arrays(unfinished / _ARRAYS, [raw(leaf) for leaf in leaves.values()])
        (unfinished / _MANIFEST).write_bytes(encoded)
        _sync(unfinished)
        unfinished.rename(folder / name)
        _sync_folder(folder)
        _sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        number = _os_error(error)
        if number is None:
            raise
        kept = f"that of step {before[-1][0]} is whole" if before else "there is none before it"
        message = f"the checkpoint of step {step} in {folder} could not be written ({os.strerror(number)}); {kept}"
        raise OSError(number, message) from error
    others = sorted({number for number, _, _ in before} - {step})
    kept_steps = others[max(len(others) - keep + 1, 0) :]
    for number, generation, path in before:
        if number not in kept_steps or generation < newest[number]:
            _remove(path)


def restore_checkpoint(folder: str | Path, like: Any, *, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint back, every array checked.

    Args:
        folder: Of the run's checkpoints.
        like: A pytree of the same structure, shapes and dtypes: arrays, `jax.ShapeDtypeStruct`s and numbers. Arrays
            come back with the sharding of those here; those here that JAX may move between devices, it may still.
        step: Which one; the latest if None.

    Raises:
        CheckpointError: There is none, or it is damaged, or of another model or version; the message has the first
            array that differs.
    """
    path, manifest = _read_manifest(Path(folder), step)
    stored, expected = manifest["leaves"], named_leaves(like)
    shapes = {name: described(leaf) for name, leaf in expected.items()}
    for name in [*expected, *stored]:
        mine, theirs = (_in_words(leaves.get(name)) for leaves in (shapes, stored))
        if mine != theirs:
            raise CheckpointError(f"{path} is of another model: {name} is {theirs} in it, and {mine} here")
    place = {name: number for number, name in enumerate(stored)}
    try:
        arrays = read_arrays(path / _ARRAYS, {place[name]: raw(leaf) for name, leaf in expected.items()})
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is damaged, or cannot be read: {reason}") from error
    restored = []
    for name, leaf in expected.items():
        array = arrays.pop(place[name])
        if digest(array) != stored[name]["sha256"]:
            raise CheckpointError(f"{path} is damaged: {name} is not what was saved")
        restored.append(as_before(array, leaf, stored[name].get("key")))
    return Checkpoint(manifest["step"], jax.tree.unflatten(jax.tree.structure(like), restored), manifest["content"])


def latest_step(folder: str | Path) -> int | None:
    """The step of the latest whole checkpoint, or None."""
    found = _found(Path(folder))
    return found[-1][0] if found else None


def read_manifest(folder: str | Path, step: int | None = None) -> dict[str, Any]:
    """What a checkpoint, the latest if `step` is None, says of itself: "step", "content" and "leaves".

    Raises:
        CheckpointError: There is none, or it is damaged or of another version.
    """
    return _read_manifest(Path(folder), step)[1]


def _read_manifest(folder: Path, step: int | None) -> tuple[Path, dict[str, Any]]:
    step = latest_step(folder) if step is None else step
    places = {number: place for number, _, place in _found(folder)}
    if step not in places:
        of = "" if step is None else f" of step {step}; it has those of steps {sorted(places)}"
        raise CheckpointError(f"{folder} has no checkpoint{of}")
    path = places[step]
    try:
        data = (path / _MANIFEST).read_bytes()
        manifest = json.loads(data)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its {_MANIFEST} cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{path / _MANIFEST} is not of an affinax checkpoint: its format is not {_FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise CheckpointError(f"{path} is of version {manifest.get('version')!r}; this affinax reads {VERSION}")
    manifest.pop("sha256", None)
    # Equal bytes: a change that JSON does not see counts too.
    if _encoded(manifest) != data:
        raise CheckpointError(f"{path} is damaged: the checksum of its {_MANIFEST} does not match")
    if manifest["step"] != step:
        raise CheckpointError(f"{path} was renamed: it is of step {manifest['step']}")
    return path, manifest


def _found(folder: Path) -> list[tuple[int, int, Path]]:
    """`(step, generation, path)`, ascending."""
    named = [(match, path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), int(match[2] or 0), path) for match, path in named)


def _check_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; checkpoints are saved in a folder")
    for path in sorted(folder.glob("*")):
        if not (_NAME.fullmatch(path.name) or path.name.startswith(_UNFINISHED)):
            raise CheckpointError(f"{folder} holds other files, such as {path.name}; choose another folder")


def _remove(path: Path) -> None:
    """Under another name first, so that half a checkpoint is never taken for one."""
    with contextlib.suppress(OSError):  # the next save tries again
        shutil.rmtree(path.rename(path.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}")))


def _in_words(described: dict[str, Any] | None) -> str:
    return "missing" if described is None else f"{described['dtype']} {described['shape']}"


def _encoded(manifest: dict[str, Any]) -> bytes:
    """The manifest as it is on disk: with the checksum of all the rest."""
    try:
        text = json.dumps(manifest)
    except TypeError as error:
        raise ValueError(f"content that JSON cannot hold: {error}") from error
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(json.loads(text) | {"sha256": digest}, indent=1).encode()


def _os_error(error: BaseException) -> int | None:
    """The number of what the operating system refused: orbax's errors have it in their text only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def _sync(folder: Path) -> None:
    """Has all files of a folder, and their names, on disk."""
    for directory, _, files in os.walk(folder):
        for name in files:
            with open(Path(directory) / name, "rb+") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(directory))


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
