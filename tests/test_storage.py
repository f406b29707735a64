"""Saved models: what was written comes back, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import pickle
import stat

import ml_dtypes
import numpy as np
import pytest

from affinax.engine import storage
from affinax.engine.errors import ModelFileError
from affinax.engine.storage import MANIFEST, load_arrays, save_arrays

ARRAYS = {
    "table": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.float64(3.5) * np.ones(()),
    "ids": np.array([-(2**62), 0, 2**62]),
    "small": np.array([1, 255], np.uint8),
    "flags": np.array([True, False]),
    "half": np.array([1.5, -2.0], np.float16),
    "big endian": np.array([1, 2, 3], ">i4"),
    "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "names": np.array(["", "Alien (1979)", "Misérables, Les", "千と千尋", "\U0001f3ac", " ", "a\nb"]),
    "no names": np.array([], np.str_),
    "nan": np.array([np.nan, -0.0, np.inf], np.float32),
}
CONTENT = {"name": "Ünïcode", "numbers": [1, 2.5e-05, None, True], "nested": {"1": {"2": []}}}


@pytest.fixture
def folder(tmp_path):
    """A small saved model."""
    save_arrays(tmp_path / "model", {"x": ARRAYS["table"], "names": ARRAYS["names"]}, CONTENT)
    return tmp_path / "model"


def _array_file(folder):
    (file,) = folder.glob("arrays-*.safetensors")
    return file


def test_round_trip(tmp_path):
    save_arrays(tmp_path / "deep" / "model", ARRAYS, CONTENT)
    arrays, content = load_arrays(tmp_path / "deep" / "model")
    assert content == CONTENT
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].shape == array.shape, name
        if array.dtype.kind == "U":
            assert arrays[name].tolist() == array.tolist()
        else:
            assert arrays[name].dtype == array.dtype.newbyteorder("="), name
            assert arrays[name].tobytes() == array.astype(arrays[name].dtype).tobytes(), name


def test_no_arrays_and_keys_that_are_numbers(tmp_path):
    save_arrays(tmp_path, {}, {10: "a", 9: ("b",)})
    assert load_arrays(tmp_path) == ({}, {"10": "a", "9": ["b"]})


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_small_floats(dtype, tmp_path):
    array = np.array([[0.0, -1.5], [2.0**-6, 256.0]], dtype)
    save_arrays(tmp_path, {"x": array}, {})
    found = load_arrays(tmp_path)[0]["x"]
    assert found.dtype == dtype
    assert found.tobytes() == array.tobytes()


def test_nothing_is_pickled(folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    load_arrays(folder)
    save_arrays(tmp_path / "again", ARRAYS, CONTENT)
    refused = np.array([{}], object), np.ones(1, complex), np.zeros(1, "M8[s]"), np.array([b"x"]), np.ones(1, "f2,f4")
    for array in (*refused, np.ones(1, ml_dtypes.float8_e5m2)):
        with pytest.raises(ValueError, match=r"array 'x' is .*; only numbers of up to 64 bits and text can be saved"):
            save_arrays(tmp_path / "refused", {"x": array}, {})
    with pytest.raises(ValueError, match="content that JSON cannot hold"):
        save_arrays(tmp_path / "refused", {}, {"x": object()})
    for name in ("x.utf8", "x.lengths", "x.bfloat16"):
        with pytest.raises(ValueError, match=f"array name '{name}'"):
            save_arrays(tmp_path / "refused", {name: np.zeros(1)}, {})
    with pytest.raises(ValueError, match="text array 'x' must be one-dimensional"):
        save_arrays(tmp_path / "refused", {"x": np.array([["a"]])}, {})
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("which", ["manifest", "arrays"])
def test_every_flipped_bit_is_refused(folder, which):
    file = folder / MANIFEST if which == "manifest" else _array_file(folder)
    data = file.read_bytes()
    missed = []
    for place in range(len(data)):
        # One bit in turn, and all of them.
        for mask in (1 << place % 8, 0xFF):
            file.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
            try:
                load_arrays(folder)
            except ModelFileError:
                continue
            missed.append((place, mask))
    assert missed == []
    file.write_bytes(data)
    load_arrays(folder)


def test_a_change_that_json_does_not_see_is_refused(folder):
    path = folder / MANIFEST
    data = path.read_bytes()
    for old, new in ((b"2.5e-05", b"2.5E-05"), (b"\n", b"\r\n"), (b'"content"', b'"c\\u006fntent"')):
        assert old in data
        path.write_bytes(data.replace(old, new))
        assert json.loads(path.read_bytes()) == json.loads(data)
        with pytest.raises(ModelFileError, match="was altered: its checksum does not match"):
            load_arrays(folder)


@pytest.mark.parametrize("which", ["manifest", "arrays"])
def test_every_truncation_is_refused(folder, which):
    file = folder / MANIFEST if which == "manifest" else _array_file(folder)
    data = file.read_bytes()
    for length in [0, 1, 7, 8, 9, len(data) // 3, len(data) // 2, len(data) - 8, len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match=rf"{file.name}.* is cut short or altered"):
            load_arrays(folder)
    file.write_bytes(data + b"\0")
    with pytest.raises(ModelFileError, match="altered"):
        load_arrays(folder)


def test_messages_name_the_array(folder):
    file = _array_file(folder)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelFileError, match=r"arrays-.*\.safetensors was altered: the sha256 of array '.*' does not"):
        load_arrays(folder)


def test_files_that_are_missing(folder, tmp_path):
    with pytest.raises(ModelFileError, match=rf"nowhere is no saved model: it has no {MANIFEST}"):
        load_arrays(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelFileError, match="no saved model"):
        load_arrays(tmp_path / "file")
    file = _array_file(folder)
    file.unlink()
    with pytest.raises(ModelFileError, match=rf"names {file.name}, which is missing"):
        load_arrays(folder)


@pytest.mark.parametrize("foreign", ['{"name": "a web page"}', "[]", "3", "null", '"affinax-model"', '{"format": "x"}'])
def test_foreign_manifests(tmp_path, foreign):
    (tmp_path / MANIFEST).write_text(foreign)
    with pytest.raises(ModelFileError, match="is not of an affinax model"):
        load_arrays(tmp_path)


def test_another_format_version(folder):
    path = folder / MANIFEST
    for version in (2, 0, "1", None):
        manifest = json.loads(path.read_bytes()) | {"version": version}
        path.write_text(json.dumps(manifest))
        message = f"format version {version!r}; this affinax reads version 1. Another release"
        with pytest.raises(ModelFileError, match=message):
            load_arrays(folder)


def test_a_foreign_array_file(folder, tmp_path):
    save_arrays(tmp_path / "other", {"y": np.zeros(3)}, {})
    _array_file(folder).write_bytes(_array_file(tmp_path / "other").read_bytes())
    with pytest.raises(ModelFileError, match=r"was altered: it holds \['y'\]; its manifest has"):
        load_arrays(folder)


def test_saving_again_replaces(folder):
    before = _array_file(folder).name
    save_arrays(folder, {"y": np.ones(2)}, {"second": True})
    arrays, content = load_arrays(folder)
    assert list(arrays) == ["y"]
    assert content == {"second": True}
    assert sorted(path.name for path in folder.iterdir()) == [_array_file(folder).name, MANIFEST]
    assert _array_file(folder).name != before


@pytest.mark.parametrize("last_write", [0, 1])
def test_a_crash_leaves_the_old_model(folder, monkeypatch, last_write):
    """The power fails before the array file (0), or between it and the manifest (1)."""
    written = []
    write = storage.write_atomically

    def fails(path, data):
        if len(written) == last_write:
            (path.parent / f".{path.name}-0badcafe").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    monkeypatch.setattr(storage, "write_atomically", fails)
    with pytest.raises(KeyboardInterrupt):
        save_arrays(folder, {"y": np.ones(2)}, {})
    arrays, content = load_arrays(folder)
    assert content == CONTENT
    np.testing.assert_array_equal(arrays["x"], ARRAYS["table"])
    # The next save works, and clears what was left behind.
    monkeypatch.undo()
    save_arrays(folder, {"y": np.ones(2)}, {})
    assert len(list(folder.iterdir())) == 2
    assert list(load_arrays(folder)[0]) == ["y"]


def test_a_crash_in_the_very_first_save_can_be_repeated(tmp_path, monkeypatch):
    def fails(path, data):
        (path.parent / f".{path.name}-0badcafe").write_bytes(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_atomically", fails)
    with pytest.raises(KeyboardInterrupt):
        save_arrays(tmp_path / "model", {"y": np.ones(2)}, {})
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="no saved model"):
        load_arrays(tmp_path / "model")
    save_arrays(tmp_path / "model", {"y": np.ones(2)}, {})
    assert len(list((tmp_path / "model").iterdir())) == 2


def test_a_failed_write_leaves_no_file_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        storage.write_atomically(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_the_mode_of_a_written_file_is_that_of_any_other(tmp_path):
    storage.write_atomically(tmp_path / "ours", b"data")
    (tmp_path / "theirs").write_bytes(b"data")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "theirs").stat().st_mode)


def test_other_folders_are_not_written_to(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelFileError, match=r"holds other files, such as notes\.txt; choose another folder"):
        save_arrays(tmp_path, {"y": np.ones(2)}, {})
    with pytest.raises(ModelFileError, match=r"notes\.txt is a file; a model is saved as a folder"):
        save_arrays(tmp_path / "notes.txt", {"y": np.ones(2)}, {})
    (tmp_path / MANIFEST).write_text('{"name": "a web page"}')
    with pytest.raises(ModelFileError, match=r"manifest\.json is not of an affinax model; choose another folder"):
        save_arrays(tmp_path, {"y": np.ones(2)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, "notes.txt"]


def test_an_empty_folder_and_a_model_with_a_note_beside_it_are_written_to(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    save_arrays(tmp_path / "empty", {"y": np.ones(2)}, {})
    (folder / "README.txt").write_text("mine")
    save_arrays(folder, {"y": np.ones(2)}, {})
    assert (folder / "README.txt").read_text() == "mine"
