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
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ModelFileError

FORMAT = "affinax-model"
VERSION = 1
MANIFEST = "manifest.json"


def save_arrays(folder: str | Path, arrays: dict[str, np.ndarray], content: dict[str, Any]) -> None:
    """Writes named arrays and a JSON-able description into a folder, atomically.

    Args:
        folder: Made if it is not there. An existing one must be empty or hold a saved model, which is replaced.
        arrays: By name. Text arrays are stored as their UTF-8 bytes and lengths.
        content: Anything JSON can hold.

    Raises:
        ModelFileError: The folder holds something else.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ModelFileError(f"{folder} is a file; a model is saved as a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise ModelFileError(f"{folder} holds other files and no {MANIFEST}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {}
    for name, array in arrays.items():
        parts = _text_parts(array) if array.dtype.kind == "U" else {"": array}
        for suffix, part in parts.items():
            part = np.ascontiguousarray(part)
            stored[name + suffix] = part
            described[name + suffix] = {
                "shape": list(part.shape),
                "dtype": part.dtype.name,
                "sha256": hashlib.sha256(part.tobytes()).hexdigest(),
            }
    file = f"arrays-{secrets.token_hex(8)}.safetensors"
    manifest = {"format": FORMAT, "version": VERSION, "file": file, "arrays": described, "content": content}
    manifest["sha256"] = _digest(manifest)
    old = {path for path in folder.glob("arrays-*.safetensors")}
    write_atomically(folder / file, save(stored))
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    for path in old:
        with contextlib.suppress(OSError):
            path.unlink()


def load_arrays(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `save_arrays` wrote, checking every byte.

    Returns:
        `(arrays, content)`.

    Raises:
        ModelFileError: A file that is missing, cut short, altered or foreign, or of a later format version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelFileError(f"{folder} is no saved model: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ModelFileError(f"{path} is not of an affinax model: its format is not {FORMAT!r}")
        version = manifest["version"]
        if version != VERSION:
            raise ModelFileError(f"{path}: format version {version} is not {VERSION}, which this affinax reads")
        if manifest.pop("sha256") != _digest(manifest):
            raise ModelFileError(f"{path} was altered: its checksum does not match")
        file, described = folder / manifest["file"], manifest["arrays"]
    except (ValueError, KeyError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path} is cut short or altered: {error!r}") from error
    if not file.is_file():
        raise ModelFileError(f"{path} names {file.name}, which is missing")
    try:
        stored = load(file.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelFileError(f"{file} is cut short or altered: {error}") from error
    if stored.keys() != described.keys():
        raise ModelFileError(f"{file} holds the arrays {sorted(stored)}; its manifest has {sorted(described)}")
    for name, array in stored.items():
        found = {
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        }
        if found != described[name]:
            field = next(key for key in found if found[key] != described[name][key])
            raise ModelFileError(f"{file}: array {name!r} was altered: its {field} does not match the manifest")
    return _joined_texts(stored), manifest["content"]


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, syncs it to disk and renames it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _text_parts(array: np.ndarray) -> dict[str, np.ndarray]:
    encoded = [text.encode() for text in array.tolist()]
    lengths = np.array([len(text) for text in encoded], np.int64)
    return {".utf8": np.frombuffer(b"".join(encoded), np.uint8), ".lengths": lengths}


def _joined_texts(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, array in stored.items():
        if name.endswith(".utf8"):
            name = name.removesuffix(".utf8")
            ends = np.cumsum(stored[name + ".lengths"])
            data = array.tobytes()
            texts = [data[end - n : end].decode() for end, n in zip(ends, stored[name + ".lengths"], strict=True)]
            arrays[name] = np.asarray(texts, np.str_)
        elif not name.endswith(".lengths"):
            arrays[name] = array
    return arrays
