"""Saved models: arrays in safetensors, all else in a JSON manifest that vouches for every byte. Never pickle.

A model is a folder with `manifest.json` and the array file that it names. Saving writes a new array file, syncs
it, and then replaces the manifest in one rename: whenever the power fails, the folder holds the old model or the
new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .errors import ModelFileError

FORMAT = "affinax-model"
VERSION = 1
MANIFEST = "manifest.json"
_BYTES, _LENGTHS = ".utf8", ".lengths"
_SMALL_FLOATS = {".bfloat16": np.uint16, ".float8_e4m3fn": np.uint8}  # which NumPy and safetensors read as their bits


def save_arrays(folder: str | Path, arrays: dict[str, np.ndarray], content: dict[str, Any]) -> None:
    """Writes named arrays and a JSON-able description into a folder, atomically.

    Args:
        folder: Made if it is not there. An existing one must be empty or hold a saved model, which is replaced.
        arrays: Numbers and text, by name. float8_e4m3fn and bfloat16 are stored as their bits, text arrays as their
            UTF-8 bytes and lengths.
        content: Anything JSON can hold.

    Raises:
        ModelFileError: The folder holds something else.
        ValueError: An array that is neither numbers nor text, a reserved name, or content that JSON cannot hold.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    _check_ours(folder)
    stored: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if name.endswith((_BYTES, _LENGTHS, *_SMALL_FLOATS)):
            raise ValueError(f"array name {name!r} has an ending that says how an array is stored")
        if f".{array.dtype.name}" in _SMALL_FLOATS:
            name, array = f"{name}.{array.dtype.name}", array.view(_SMALL_FLOATS[f".{array.dtype.name}"])
        known = array.dtype.kind in "biufU" and array.dtype.isbuiltin != 2  # which those of other packages are
        if not known or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
            raise ValueError(f"array {name!r} is {array.dtype}; only numbers of up to 64 bits and text can be saved")
        parts = _text_parts(name, array) if array.dtype.kind == "U" else {"": array}
        for suffix, part in parts.items():
            stored[name + suffix] = np.asarray(part, part.dtype.newbyteorder("="), order="C")
    file = f"arrays-{secrets.token_hex(8)}.safetensors"
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "file": file,
        "arrays": {name: _described(array) for name, array in stored.items()},
        "content": content,
    }
    text = _encoded(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    left_over = {*folder.glob("arrays-*.safetensors"), *folder.glob(".arrays-*"), *folder.glob(f".{MANIFEST}-*")}
    write_atomically(folder / file, save(stored))
    write_atomically(folder / MANIFEST, text)
    for path in left_over:
        with contextlib.suppress(OSError):
            path.unlink()


def load_arrays(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `save_arrays` wrote, checking every byte.

    Returns:
        `(arrays, content)`.

    Raises:
        ModelFileError: A file that is missing, cut short, altered or foreign, or of another format version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelFileError(f"{folder} is no saved model: it has no {MANIFEST}")
    manifest = _read_manifest(path)
    file, described = folder / manifest["file"], manifest["arrays"]
    if not file.is_file():
        raise ModelFileError(f"{path} names {file.name}, which is missing")
    data = file.read_bytes()
    try:
        stored = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{file} is cut short or altered: {error}") from error
    if stored.keys() != described.keys():
        raise ModelFileError(f"{file} was altered: it holds {sorted(stored)}; its manifest has {sorted(described)}")
    for name, array in stored.items():
        found = _described(array)
        if found != described[name]:
            field = next(key for key in found if found[key] != described[name].get(key))
            raise ModelFileError(f"{file} was altered: the {field} of array {name!r} does not match the manifest")
    return _joined_texts(stored), manifest["content"]


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, syncs it to disk and renames it."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the rename itself is on disk once the folder is
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _check_ours(folder: Path) -> None:
    """Refuses a folder whose files are not ours; what an interrupted save left behind is."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ModelFileError(f"{folder} is a file; a model is saved as a folder")
    manifest = folder / MANIFEST
    if manifest.exists():
        if not manifest.is_file() or FORMAT.encode() not in manifest.read_bytes():
            raise ModelFileError(f"{manifest} is not of an affinax model; choose another folder")
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(("arrays-", ".arrays-", f".{MANIFEST}-")):
            raise ModelFileError(f"{folder} holds other files, such as {path.name}; choose another folder")


def _read_manifest(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise ModelFileError(f"{path} is cut short or altered: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelFileError(f"{path} is not of an affinax model: its format is not {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ModelFileError(
            f"{path}: format version {manifest.get('version')!r}; this affinax reads version {VERSION}. "
            "Another release of affinax wrote it, or it was altered"
        )
    # Equal bytes, not just equal meaning: a change that JSON does not see, such as 1E-05 for 1e-05, counts too.
    manifest.pop("sha256", None)
    if _encoded(manifest) != data:
        raise ModelFileError(f"{path} was altered: its checksum does not match")
    return manifest


def _encoded(manifest: dict[str, Any]) -> bytes:
    """The manifest as it is on disk: with the checksum of all the rest."""
    try:
        text = json.dumps(manifest, indent=1)
    except TypeError as error:
        raise ValueError(f"content that JSON cannot hold: {error}") from error
    return json.dumps(json.loads(text) | {"sha256": _sha256(text.encode())}, indent=1).encode()


def _described(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": _sha256(array.tobytes())}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _text_parts(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    if array.ndim != 1:
        raise ValueError(f"text array {name!r} must be one-dimensional; it has shape {array.shape}")
    encoded = [text.encode() for text in array.tolist()]
    lengths = np.array([len(text) for text in encoded], np.int64)
    return {_BYTES: np.frombuffer(b"".join(encoded), np.uint8), _LENGTHS: lengths}


def _joined_texts(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, array in stored.items():
        if name.endswith(_BYTES):
            name = name.removesuffix(_BYTES)
            lengths, data = stored[name + _LENGTHS], array.tobytes()
            ends = np.cumsum(lengths)
            texts = [data[end - n : end].decode() for end, n in zip(ends, lengths, strict=True)]
            arrays[name] = np.asarray(texts, np.str_)
        elif name.endswith(tuple(_SMALL_FLOATS)):
            name, _, dtype = name.rpartition(".")
            arrays[name] = array.view(jnp.dtype(dtype))
        elif not name.endswith(_LENGTHS):
            arrays[name] = array
    return arrays
