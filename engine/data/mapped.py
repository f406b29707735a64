"""Data larger than memory: examples of a Parquet or Arrow file as arrays that are mapped from disk.

A folder of mapped arrays has `manifest.json`, which names a subfolder with an `.npy` file for each array. The manifest
is written last, and replaced in one rename: a conversion that was cut short is none.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import InteractionError
from ..storage import write_atomically
from .row_arrays import Piece, RowArray, row_array

if TYPE_CHECKING:
    import polars as pl

_FORMAT, _VERSION, _MANIFEST, _ARRAYS = "affinax-mapped", 1, "manifest.json", "arrays-"
_PARQUET, _IPC = (".parquet", ".pq"), (".arrow", ".ipc", ".feather")
# Read at once, for where a piece begins inside a row group polars reads that from its start; and converted at once.
_BLOCK_BYTES, _PIECE_BYTES, _FIRST_ROWS = 1 << 26, 1 << 22, 1 << 14


def map_examples(
    path: str | Path,
    folder: str | Path,
    *,
    arrays: Mapping[str, str | Sequence[str]],
    length: Mapping[str, int] | None = None,
    truncate: bool = False,
) -> dict[str, np.ndarray]:
    """Converts a file to arrays on disk, once, and maps them.

    It is read in blocks of 64 MB, for a few of which memory is taken; of a larger row group (Parquet) or record batch
    (Arrow), for all of it. Columns of lists whose `length` is not given are read once before, for the longest. A later
    call for the same arrays of the same files (by place, size and time of change) converts nothing.

    Whole numbers and booleans become int32, floats float32, float64 ones rounded to it. Columns become:

    - one column of numbers: `[n]`;
    - a list of columns, all of whole numbers or all of floats: `[n, columns]`;
    - one column of lists: `[n, longest]`, whole numbers padded on the left with -1. Lists of floats must be
      equally long.

    Args:
        path: A `.parquet`, `.pq`, `.arrow`, `.ipc` or `.feather` file, a folder of Parquet files or a pattern such as
            `"days/*.parquet"`, whose files are taken in the order of their names.
        folder: Of the arrays; made if it is not there. One process at a time converts into it.
        arrays: The column or columns of each array, such as `{"fields": ["user", "item"], "labels": "clicked"}`.
        length: Of arrays of lists: that to pad to.
        truncate: Whether the last of longer lists are kept; if False they are an error.

    Returns:
        The arrays by name, read-only.

    Raises:
        InteractionError: A file that cannot be read or is of another kind, a column that is not there or holds
            something else than numbers, a number that is missing, NaN or infinite or does not fit, a list longer than
            its `length`, no rows at all, or a folder that holds other files.
        FileNotFoundError: No such file.
        ValueError: No arrays, one without columns, or a `length` below 1 or of no array.

    >>> import tempfile
    >>> import polars as pl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pl.DataFrame({"item": [7, 8], "history": [[1, 2], [3]]}).write_parquet(f"{folder}/x.parquet")
    ...     mapped = map_examples(f"{folder}/x.parquet", f"{folder}/x", arrays={"item": "item", "history": "history"})
    ...     print(mapped["item"], mapped["history"].tolist())
    [7 8] [[1, 2], [-1, 3]]
    """
    length = dict(length or {})
    wanted = {name: columns if isinstance(columns, str) else list(columns) for name, columns in arrays.items()}
    if not wanted or not all(wanted.values()):
        raise ValueError(f"arrays={wanted} must name at least one array, and each at least one column")
    for name, number in length.items():
        if name not in wanted or number < 1:
            raise ValueError(f"length={length} must be at least 1, and of arrays among {list(wanted)}")
    files, folder = _files(path), Path(folder)
    _check_ours(folder)
    facts = [(str(file.resolve()), file.stat()) for file in files]
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "source": [[place, fact.st_size, fact.st_mtime_ns] for place, fact in facts],
        "arrays": wanted,
        "length": length,
        "truncate": truncate,
    }
    found = _mapped(folder, description)
    if found is None:
        _convert(files, folder, description)
        found = _mapped(folder, description)
        if found is None:
            raise InteractionError(f"{folder}: the arrays were altered while they were written; convert them again")
    return found


def _files(path: str | Path) -> list[Path]:
    place = Path(path)
    if place.is_dir():
        files = [file for suffix in _PARQUET for file in place.glob(f"*{suffix}")]
    elif place.is_file():
        files = [place]
    else:
        files = [Path(file) for file in glob.glob(str(path)) if Path(file).is_file()]
    if not files:
        inside = "the folder has no Parquet files" if place.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {inside}")
    for file in files:
        if file.suffix.lower() not in _PARQUET + _IPC:
            accepted = ", ".join(_PARQUET + _IPC)
            raise InteractionError(f"{file.name}: files of the kinds {accepted} are accepted; others can be converted")
    return sorted(files)


def _check_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InteractionError(f"{folder} is a file; arrays are written to a folder")
    manifest = folder / _MANIFEST
    if manifest.exists():
        if not manifest.is_file() or _FORMAT.encode() not in manifest.read_bytes():
            raise InteractionError(f"{manifest} is not of mapped arrays; choose another folder")
        return
    for path in sorted(folder.glob("*")):
        if not path.name.startswith((_ARRAYS, f".{_MANIFEST}-")):
            raise InteractionError(f"{folder} holds other files, such as {path.name}; choose another folder")


def _mapped(folder: Path, description: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays of the folder, if they are those described, and whole."""
    try:
        data = (folder / _MANIFEST).read_bytes()
        manifest = json.loads(data)
        manifest.pop("sha256")
        if _encoded(manifest) != data or any(manifest[key] != value for key, value in description.items()):
            return None
        arrays = {}
        for name, stored in manifest["stored"].items():
            empty = 0 in stored["shape"]
            array = np.load(folder / manifest["folder"] / stored["file"], mmap_mode=None if empty else "r")
            array.flags.writeable = False
            if [list(array.shape), str(array.dtype)] != [stored["shape"], stored["dtype"]]:
                return None
            arrays[name] = array
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return arrays


def _convert(files: list[Path], folder: Path, description: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    left_over = [path for path in folder.iterdir() if path.name.startswith((_ARRAYS, f".{_MANIFEST}-"))]
    plans, n = _plans(files, description)
    target = folder / f"{_ARRAYS}{secrets.token_hex(8)}"
    try:
        target.mkdir()
        stored = {
            name: {"file": f"{number}.npy", "shape": [n, *plan.row_shape], "dtype": str(plan.dtype)}
            for number, (name, plan) in enumerate(plans.items())
        }
        with contextlib.ExitStack() as stack:
            outs = {name: stack.enter_context(open(target / stored[name]["file"], "wb")) for name in plans}
            _write(files, plans, outs, n)
        manifest = _encoded({**description, "folder": target.name, "stored": stored})
        write_atomically(folder / _MANIFEST, manifest)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    for path in left_over:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _plans(files: list[Path], description: dict[str, Any]) -> tuple[dict[str, RowArray], int]:
    """How each array comes about, and the number of rows."""
    length, truncate = description["length"], description["truncate"]
    first: dict[str, RowArray] = {}
    n = 0
    for file in files:
        with _readable(file):
            schema = _scan(file).collect_schema()
        found = {
            name: row_array(columns, schema, file.name, length.get(name), truncate)
            for name, columns in description["arrays"].items()
        }
        first = first or found
        for name, plan in found.items():
            if plan != first[name]:
                raise InteractionError(
                    f"{file.name}: the columns of array {name!r} are {[str(schema[c]) for c in plan.columns]}, "
                    f"those of {files[0].name} of another kind; the same kind in every file is accepted"
                )
        n += _count(file)
    if n == 0:
        raise InteractionError(
            f"{files[0].name} has no rows" + (f", nor have {len(files) - 1} others" * (len(files) > 1))
        )
    unknown = {name: plan for name, plan in first.items() if plan.lists and plan.width is None}
    longest = dict.fromkeys(unknown, 0)
    if unknown:
        for piece in _pieces(files, {plan.columns[0] for plan in unknown.values()}):
            for name, plan in unknown.items():
                longest[name] = max(longest[name], plan.longest(piece))
    return first | {name: replace(plan, width=longest[name]) for name, plan in unknown.items()}, n


def _write(files: list[Path], plans: dict[str, RowArray], outs: Mapping[str, IO[bytes]], n: int) -> None:
    for name, plan in plans.items():
        header = {"descr": plan.dtype.str, "fortran_order": False, "shape": (n, *plan.row_shape)}
        np.lib.format.write_array_header_1_0(outs[name], header)
    for piece in _pieces(files, {column for plan in plans.values() for column in plan.columns}):
        for name, plan in plans.items():
            outs[name].write(np.ascontiguousarray(plan.of(piece)).data)
    for out in outs.values():
        out.flush()
        os.fsync(out.fileno())


def _pieces(files: list[Path], columns: set[str]) -> Iterator[Piece]:
    for file in files:
        n, first, rows = _count(file), 0, _FIRST_ROWS
        while first < n:
            with _readable(file):
                frame = _scan(file).select(sorted(columns)).slice(first, rows).collect()
            row_bytes = max(frame.estimated_size() / len(frame), 1)
            for part in frame.iter_slices(max(int(_PIECE_BYTES / row_bytes), 1)):
                yield Piece(part, file.name, first)
                first += len(part)
            rows = max(1, min(4 * rows, int(_BLOCK_BYTES / row_bytes)))


def _count(file: Path) -> int:
    import polars as pl

    with _readable(file):
        return int(_scan(file).select(pl.len()).collect().item())


def _scan(file: Path) -> pl.LazyFrame:
    import polars as pl

    # As a file, not as a pattern: a name may hold brackets.
    if file.suffix.lower() in _PARQUET:
        return pl.scan_parquet(file, glob=False)
    return pl.scan_ipc(file)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    import polars as pl

    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        kind = "Parquet" if file.suffix.lower() in _PARQUET else "Arrow"
        raise InteractionError(
            f"{file.name} is no readable {kind} file: {' '.join(str(error).split())[:300]}"
        ) from error


def _encoded(manifest: dict[str, Any]) -> bytes:
    """The manifest as it is on disk: with the checksum of all the rest."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps(manifest | {"sha256": digest}, indent=1).encode()
