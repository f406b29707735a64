"""Files larger than memory, as mapped arrays: every kind of column, converted once, and refused where it is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affinax.engine.data import map_examples, mapped
from affinax.engine.errors import InteractionError

N = 1000
ARRAYS = {
    "fields": ["user", "item"],
    "labels": "clicked",
    "history": "history",
    "vectors": "vector",
    "dense": ["a", "b"],
}


def _frame(n: int = N, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    history = [rng.integers(0, 10**6, size).tolist() for size in rng.integers(0, 8, n)]
    history[n // 2] = list(range(9))
    return pl.DataFrame(
        {
            "user": rng.integers(-(2**31), 2**31, n),
            "item": pl.Series(rng.integers(0, 200, n), dtype=pl.UInt8),
            "clicked": rng.random(n) < 0.3,
            "history": pl.Series(history, dtype=pl.List(pl.Int64)),
            "vector": pl.Series(rng.random((n, 3)), dtype=pl.Array(pl.Float64, 3)),
            "a": rng.random(n),
            "b": rng.random(n).astype(np.float32),
            "name": ["x"] * n,
        }
    )


def _expected(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    width = max(len(row) for row in frame["history"].to_list())
    return {
        "fields": np.stack([frame["user"].to_numpy(), frame["item"].to_numpy()], axis=1).astype(np.int32),
        "labels": frame["clicked"].to_numpy().astype(np.int32),
        "history": np.array([[-1] * (width - len(row)) + row for row in frame["history"].to_list()], np.int32),
        "vectors": frame["vector"].to_numpy().astype(np.float32),
        "dense": np.stack([frame["a"].to_numpy(), frame["b"].to_numpy()], axis=1).astype(np.float32),
    }


def _assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(params=["parquet", "arrow", "compressed.feather"])
def file(request, tmp_path):
    """The frame as a file of several row groups or record batches."""
    path = tmp_path / f"clicks.{request.param}"
    if request.param == "parquet":
        _frame().write_parquet(path, row_group_size=130)
    else:
        compression = "lz4" if "compressed" in request.param else "uncompressed"
        _frame().write_ipc(path, compression=compression, record_batch_size=130)
    return path


@pytest.fixture
def small_pieces(monkeypatch):
    """Blocks and pieces of some rows, which begin anywhere in a row group."""
    monkeypatch.setattr(mapped, "_FIRST_ROWS", 37)
    monkeypatch.setattr(mapped, "_BLOCK_BYTES", 20_000)
    monkeypatch.setattr(mapped, "_PIECE_BYTES", 3000)


def test_every_kind_of_column(file, tmp_path, small_pieces):
    found = map_examples(file, tmp_path / "deep" / "mapped", arrays=ARRAYS)
    _assert_same(found, _expected(_frame()))
    for array in found.values():
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert sorted(path.suffix for path in (tmp_path / "deep" / "mapped").rglob("*")) == ["", ".json", *[".npy"] * 5]


def test_a_second_call_only_maps(file, tmp_path, monkeypatch):
    first = map_examples(str(file), tmp_path / "mapped", arrays=ARRAYS)

    def refuse(*_):
        raise AssertionError("it was converted again")

    monkeypatch.setattr(mapped, "_convert", refuse)
    # By another spelling of the same.
    arrays = {name: columns if isinstance(columns, str) else tuple(columns) for name, columns in ARRAYS.items()}
    _assert_same(map_examples(file, str(tmp_path / "mapped"), arrays=arrays), first)
    for change in ({"length": {"history": 9}}, {"truncate": True}, {"arrays": {"labels": "clicked"}}):
        with pytest.raises(AssertionError, match="converted again"):
            map_examples(file, tmp_path / "mapped", **{"arrays": ARRAYS, **change})


def test_an_altered_source_is_converted_anew(tmp_path):
    path, folder = tmp_path / "clicks.parquet", tmp_path / "mapped"
    _frame().write_parquet(path)
    before = map_examples(path, folder, arrays=ARRAYS)
    _frame(N, 1).write_parquet(path)
    _assert_same(map_examples(path, folder, arrays=ARRAYS), _expected(_frame(N, 1)))
    # What was mapped before still is what it was.
    _assert_same(before, _expected(_frame()))
    assert len(list(folder.iterdir())) == 2
    # The same size, and another time of change.
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    manifest = (folder / "manifest.json").read_bytes()
    map_examples(path, folder, arrays=ARRAYS)
    assert (folder / "manifest.json").read_bytes() != manifest


def _damage(folder, what: str) -> None:
    array = next(folder.rglob("0.npy"))
    manifest = folder / "manifest.json"
    if what == "cut short":
        array.write_bytes(array.read_bytes()[:-1])
    elif what == "missing":
        array.unlink()
    elif what == "another header":
        array.write_bytes(array.read_bytes().replace(b"<i4", b"<f4"))
    elif what == "another manifest":
        manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), "folder": "elsewhere"}))
    elif what == "no manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:-40])


@pytest.mark.parametrize(
    "what", ["cut short", "missing", "another header", "another manifest", "no manifest", "half a manifest"]
)
def test_a_folder_that_is_not_whole_is_made_anew(tmp_path, what):
    path, folder = tmp_path / "clicks.parquet", tmp_path / "mapped"
    _frame().write_parquet(path)
    map_examples(path, folder, arrays=ARRAYS)
    _damage(folder, what)
    _assert_same(map_examples(path, folder, arrays=ARRAYS), _expected(_frame()))
    assert len(list(folder.iterdir())) == 2


def test_a_conversion_that_is_cut_short_leaves_the_old_arrays(tmp_path, monkeypatch):
    path, folder = tmp_path / "clicks.parquet", tmp_path / "mapped"
    _frame().write_parquet(path)
    before = map_examples(path, folder, arrays=ARRAYS)

    def crashes(*_):
        raise KeyboardInterrupt

    for name in ("_write", "write_atomically"):
        monkeypatch.setattr(mapped, name, crashes)
        with pytest.raises(KeyboardInterrupt):
            map_examples(path, folder, arrays={"labels": "clicked"})
        monkeypatch.undo()
        assert len(list(folder.iterdir())) == 2
    # The power fails, and nothing is cleared.
    (folder / "arrays-0badcafe").mkdir()
    (folder / "arrays-0badcafe" / "0.npy").write_bytes(b"half")
    _assert_same(map_examples(path, folder, arrays=ARRAYS), before)
    map_examples(path, folder, arrays={"labels": "clicked"})
    assert len(list(folder.iterdir())) == 2


def test_several_files(tmp_path, small_pieces):
    folder = tmp_path / "days [1]"
    folder.mkdir()
    parts = [_frame(100, 1), _frame(1, 2).with_columns(pl.col("user").cast(pl.Int32)), _frame(70, 3)]
    for name, part in zip("abc", parts, strict=True):
        part.write_parquet(folder / f"{name} [x].parquet")
    (folder / "_SUCCESS").write_text("")
    expected = _expected(pl.concat(parts, how="vertical_relaxed"))
    _assert_same(map_examples(folder, tmp_path / "mapped", arrays=ARRAYS), expected)
    for name in "abc":
        shutil.copy(folder / f"{name} [x].parquet", tmp_path / f"day-{name}.parquet")
    _assert_same(map_examples(tmp_path / "day-*.parquet", tmp_path / "globbed", arrays=ARRAYS), expected)
    # A file of the name of a pattern is that file.
    single = map_examples(folder / "a [x].parquet", tmp_path / "single", arrays=ARRAYS)
    _assert_same(single, _expected(parts[0]))
    (folder / "d.parquet").write_bytes((folder / "c [x].parquet").read_bytes())
    assert len(map_examples(folder, tmp_path / "mapped", arrays=ARRAYS)["labels"]) == 241


def test_lengths(tmp_path):
    path = tmp_path / "x.parquet"
    pl.DataFrame(
        {"h": [[1, 2, 3], [], [4]], "g": [[], [5], []]}, schema_overrides={"g": pl.List(pl.Int8)}
    ).write_parquet(path)
    arrays = {"h": "h", "g": "g"}
    found = map_examples(path, tmp_path / "m", arrays=arrays, length={"h": 4})
    assert found["h"].tolist() == [[-1, 1, 2, 3], [-1] * 4, [-1, -1, -1, 4]]
    assert found["g"].tolist() == [[-1], [5], [-1]]
    found = map_examples(path, tmp_path / "m", arrays=arrays, length={"h": 2}, truncate=True)
    assert found["h"].tolist() == [[2, 3], [-1, -1], [-1, 4]]
    message = r"x\.parquet, column 'h', row 0 has 3 numbers; at most 2 are accepted; truncate=True takes the last 2"
    with pytest.raises(InteractionError, match=message):
        map_examples(path, tmp_path / "m", arrays=arrays, length={"h": 2})
    pl.DataFrame({"h": [[], []]}, schema={"h": pl.List(pl.Int64)}).write_parquet(path)
    assert map_examples(path, tmp_path / "m", arrays={"h": "h"})["h"].shape == (2, 0)
    assert map_examples(path, tmp_path / "m", arrays={"h": "h"}, length={"h": 1})["h"].tolist() == [[-1], [-1]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(1, 200),
)
def test_any_lists(tmp_path, rows, width, piece_bytes):
    pl.DataFrame({"h": rows}, schema={"h": pl.List(pl.Int64)}).write_parquet(tmp_path / "x.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "_PIECE_BYTES", piece_bytes)
        found = map_examples(
            tmp_path / "x.parquet", tmp_path / "m", arrays={"h": "h"}, length={"h": width}, truncate=True
        )
    assert found["h"].tolist() == [[-1] * (width - len(row)) + row[-width:] for row in rows]


@pytest.mark.parametrize(
    ("values", "dtype", "said"),
    [
        ([1, None, 3], pl.Int64, "row 1: is missing; numbers are accepted"),
        ([1.0, 2.0, np.nan], pl.Float64, "row 2: nan is no finite float32 number"),
        ([1.0, 1e39, 1.0], pl.Float64, r"row 1: 1e\+39 is no finite float32 number"),
        ([1, 2**31, 3], pl.Int64, "row 1: 2147483648 does not fit int32, which holds -2147483648 to 2147483647; Vocab"),
        ([1, 2, 2**64 - 1], pl.UInt64, "row 2: 18446744073709551615 does not fit int32"),
        ([1, 2, -(2**31) - 1], pl.Int64, "row 2: -2147483649 does not fit int32"),
        (
            ["a", "b", "c"],
            pl.String,
            " is String; numbers, booleans .* are accepted; number texts with Vocabulary first",
        ),
        (["a", "b", "c"], pl.Categorical, "is Categorical.*; number texts with Vocabulary first"),
        ([1, 2, 3], pl.Datetime, r" is Datetime.*; numbers, booleans and lists of them are accepted$"),
        ([None, None, None], pl.Null, " is Null; numbers"),
        ([["a"], [], []], pl.List(pl.String), r" is List\(String\); numbers, .*; number texts"),
        ([[[1]], [], []], pl.List(pl.List(pl.Int64)), r" is List\(List\(Int64\)\); numbers"),
        ([[1, 2], [], None], pl.List(pl.Int64), "row 2: is missing; an empty list is accepted"),
        ([[], [1, 2], [3, None]], pl.List(pl.Int64), "row 2: is missing; numbers are accepted"),
        ([[], [1, 2**31], []], pl.List(pl.Int64), "row 1: 2147483648 does not fit int32"),
        ([[0.5, 1.0], [1.0], [0.0, 0.0]], pl.List(pl.Float64), "row 1 has 1 numbers; lists of floats must all have 2"),
        ([[0.5, 1.0], [1.0, np.inf], []], pl.List(pl.Float32), "row 2 has 0 numbers"),
        ([[0.5, 1.0], [1.0, np.inf], [0, 0]], pl.List(pl.Float32), "row 1: inf is no finite"),
        ([[1, 2], None, [3, 4]], pl.Array(pl.Int64, 2), "row 1: is missing"),
    ],
)
@pytest.mark.parametrize("before", [0, 20])
def test_bad_columns(tmp_path, monkeypatch, values, dtype, said, before):
    """Also in a later piece, where rows are still counted from the first of the file."""
    monkeypatch.setattr(mapped, "_FIRST_ROWS", 8)
    monkeypatch.setattr(mapped, "_PIECE_BYTES", 64)
    if before and "row" in said and not isinstance(dtype, pl.List):
        good = next(value for value in values if value is not None)
        values = [good] * before + values
        row = int(said[4])
        said = said.replace(f"row {row}", f"row {row + before}", 1)
    if dtype == pl.Categorical or dtype == pl.Datetime:
        column = pl.Series("bad", values).cast(dtype)
    else:
        column = pl.Series("bad", values, dtype=dtype)
    pl.DataFrame([pl.Series("good", np.arange(len(values))), column]).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InteractionError, match=rf"^x\.parquet, column 'bad',? ?{said}"):
        map_examples(tmp_path / "x.parquet", tmp_path / "m", arrays={"good": "good", "array": "bad"})
    assert not list((tmp_path / "m").glob("*"))


def test_columns_that_do_not_go_together(tmp_path):
    path = tmp_path / "x.parquet"
    pl.DataFrame({"i": [1], "f": [0.5], "h": [[1]]}).write_parquet(path)
    for arrays, said in (
        (
            {"x": ["i", "f"]},
            r"x\.parquet: column 'i' is Int64 and 'f' is Float64; an array is accepted of whole numbers",
        ),
        ({"x": ["i", "h"]}, r"column 'h' is List\(Int64\); a column of lists is an array of its own"),
        ({"x": ["i", "k"]}, r"x\.parquet has no column 'k'; it has \['i', 'f', 'h'\]"),
    ):
        with pytest.raises(InteractionError, match=said):
            map_examples(path, tmp_path / "m", arrays=arrays)
    with pytest.raises(InteractionError, match="column 'i' is Int64; a length is accepted of lists only"):
        map_examples(path, tmp_path / "m", arrays={"x": "i"}, length={"x": 3})
    folder = tmp_path / "parts"
    folder.mkdir()
    pl.DataFrame({"i": [1]}).write_parquet(folder / "a.parquet")
    pl.DataFrame({"i": [0.5]}).write_parquet(folder / "b.parquet")
    with pytest.raises(InteractionError, match=r"b\.parquet: the columns of array 'x' are \['Float64'\], those of a\."):
        map_examples(folder, tmp_path / "m", arrays={"x": "i"})


def test_bad_arguments(tmp_path):
    path = tmp_path / "x.parquet"
    pl.DataFrame({"i": [1]}).write_parquet(path)
    for arguments, said in (
        ({"arrays": {}}, "must name at least one array"),
        ({"arrays": {"x": []}}, "and each at least one column"),
        (
            {"arrays": {"x": "i"}, "length": {"y": 3}},
            r"length={'y': 3} must be at least 1, and of arrays among \['x'\]",
        ),
        ({"arrays": {"x": "i"}, "length": {"x": 0}}, "must be at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            map_examples(path, tmp_path / "m", **arguments)


def test_bad_files(tmp_path):
    def mapping(path):
        return map_examples(path, tmp_path / "m", arrays={"x": "i"})

    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        mapping(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="the folder has no Parquet files"):
        mapping(tmp_path)
    (tmp_path / "x.csv").write_text("i\n1\n")
    with pytest.raises(InteractionError, match=r"x\.csv: files of the kinds \.parquet, .* are accepted"):
        mapping(tmp_path / "x.csv")
    for suffix, kind in (("parquet", "Parquet"), ("arrow", "Arrow")):
        (tmp_path / f"x.{suffix}").write_bytes(b"PAR1 no file of any kind")
        with pytest.raises(InteractionError, match=rf"x\.{suffix} is no readable {kind} file"):
            mapping(tmp_path / f"x.{suffix}")
    pl.DataFrame({"i": range(1000)}).write_parquet(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-100])
    with pytest.raises(InteractionError, match=r"cut\.parquet is no readable Parquet file"):
        mapping(tmp_path / "cut.parquet")
    pl.DataFrame({"i": []}, schema={"i": pl.Int64}).write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(InteractionError, match=r"empty\.parquet has no rows"):
        mapping(tmp_path / "empty.parquet")


def test_other_folders_are_not_written_to(tmp_path):
    path, folder = tmp_path / "x.parquet", tmp_path / "folder"
    pl.DataFrame({"i": [1]}).write_parquet(path)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InteractionError, match=r"holds other files, such as notes\.txt; choose another folder"):
        map_examples(path, folder, arrays={"x": "i"})
    (folder / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(InteractionError, match=r"manifest\.json is not of mapped arrays"):
        map_examples(path, folder, arrays={"x": "i"})
    with pytest.raises(InteractionError, match=r"notes\.txt is a file; arrays are written to a folder"):
        map_examples(path, folder / "notes.txt", arrays={"x": "i"})
    assert (folder / "notes.txt").read_text() == "mine"


_PROGRAM = """
import sys
import polars as pl
from affinax.engine.data import map_examples, mapped
mapped._BLOCK_BYTES, mapped._PIECE_BYTES = 1 << 21, 1 << 20
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
pl.scan_parquet(sys.argv[1]).head(1).collect()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
arrays = map_examples(sys.argv[1], sys.argv[2], arrays={"fields": ["user", "item"], "history": "history"})
print(peak() - before, sum(array.nbytes for array in arrays.values()) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_memory_is_bounded(tmp_path):
    n, rng = 400_000, np.random.default_rng(0)
    flat = rng.integers(0, 10**6, (n, 60), np.int32)
    pl.DataFrame(
        {
            "user": rng.integers(0, 10**6, n),
            "item": rng.integers(0, 10**6, n),
            "history": pl.Series(flat).arr.to_list(),
        }
    ).write_parquet(tmp_path / "x.parquet", row_group_size=5000)
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "x.parquet"), str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, size = map(float, done.stdout.split())
    assert size > 90
    assert taken < 45, done.stdout
    assert (tmp_path / "x.parquet").stat().st_size > 60 * 2**20
    found = map_examples(
        tmp_path / "x.parquet", tmp_path / "m", arrays={"fields": ["user", "item"], "history": "history"}
    )
    np.testing.assert_array_equal(found["history"], flat)
