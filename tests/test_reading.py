"""`read_interactions`: every format, faithful to the last byte or refused by file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affinax.engine.data import InteractionError, Vocabulary, read_interactions

ROWS = [("bob", 7, 4.5, 30), ("ann", 7, 2.0, 10), ("bob", 9, 5.0, 20)]
NAMES = ("user_id", "item_id", "rating", "timestamp")
FUZZ = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _text(separator, rows=ROWS, names=NAMES, end="\n"):
    return "".join(separator.join(map(str, row)) + end for row in ([names] if names else []) + list(rows)).encode()


def _json(rows=ROWS, names=NAMES):
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()


def _parquet(rows=ROWS, names=NAMES):
    buffer = io.BytesIO()
    pl.DataFrame(rows, schema=list(names), orient="row").write_parquet(buffer)
    return buffer.getvalue()


def _read(tmp_path, data, name="x.csv", **options):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_interactions(path, **options)


def _rows(x):
    """`(user, item[, value][, time])` in outside ids, in the order of the file if times are line numbers."""
    columns = [x.user_ids.outside(x.users), x.item_ids.outside(x.items), x.values, x.timestamps]
    return list(zip(*[column.tolist() for column in columns if column is not None], strict=True))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.csv", _text(",")),
        ("X.CSV", _text(",")),
        ("x.tsv", _text("\t")),
        ("x.dat", _text("::")),
        ("x.dat", _text("\t")),
        ("x.txt", _text(";")),
        ("x.txt", _text("|")),
        ("x", _text(" ")),
        ("x.inter", _text("\t", names=("user_id:token", "item_id:token", "rating:float", "timestamp:float"))),
        ("x.csv", _text(",", names=("userId", "movieId", "Rating", " Timestamp "))),
        ("x.parquet", _parquet()),
        ("x.jsonl", _json()),
        ("x.ndjson", _json()),
        ("x.csv", b"\xef\xbb\xbf" + _text(",")),
        ("x.csv", _text(",", end="\r\n")),
        ("x.csv", _text(",").removesuffix(b"\n")),
        ("x.csv", b"\n" + _text(",", end="\n\n")),
        ("x.csv", b"\r\n" + _text(",", end="\r\n\r\n")),
        ("x.csv", b'"user_id",item_id,rating,timestamp\n"bob","7",4.5,30\nann,7,"2.0",10\n\n"bob",9,5.0,"20"'),
        ("x.jsonl", b"\xef\xbb\xbf\r\n" + _json().replace(b"\n", b"\r\n\r\n").removesuffix(b"\r\n")),
    ],
)
def test_every_format_gives_the_same(tmp_path, name, data, packed):
    x = _read(tmp_path, gzip.compress(data, mtime=0) if packed else data, name + (".gz" if packed else ""))
    assert _rows(x) == [("ann", 7, 2.0, 10), ("bob", 7, 4.5, 30), ("bob", 9, 5.0, 20)]
    assert x.timestamps.dtype == np.int64


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        ({"user": "who", "item": "what"}, True),
        ({"user": 2, "item": "what"}, True),
        ({"user": 2, "item": 0}, False),
        (("item", "skip", "user"), False),
        (("item", "_", "user", ""), False),
        (["item", "skip", "user", "skip"], False),
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_columns_by_name_position_and_order(tmp_path, name, columns, header):
    names, rows = ("what", "n", "who", "extra"), [("tea", 1, "ann", "x")]
    data = {"x.csv": _text(",", rows, names if header else None), "x.jsonl": _json(rows, names)}
    x = _read(tmp_path, data.get(name, _parquet(rows, names)), name, columns=columns)
    assert _rows(x) == [("ann", "tea")]


def test_header_and_separator_can_be_said(tmp_path):
    data = "user,item\nann,tea\n"
    assert _rows(_read(tmp_path, data, columns=("user", "item"), header=True)) == [("ann", "tea")]
    assert _rows(_read(tmp_path, data, columns=("user", "item"), header=False)) == [("ann", "tea"), ("user", "item")]
    with pytest.raises(InteractionError, match=r"x.csv, line 1 reads like a header: .*header=True"):
        _read(tmp_path, data, columns=("user", "item"))
    with pytest.raises(InteractionError, match=r"line 1: value 'stars' .*If this line is a header, say header=True"):
        _read(tmp_path, "reader,book,stars\nann,tea,5\n", columns=("user", "item", "value"))
    assert _rows(_read(tmp_path, "a~~b\nc~~d\n", "x.txt", columns=("user", "item"), separator="~~")) == [
        ("a", "b"),
        ("c", "d"),
    ]


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        (["7", "12"], [7, 12]),
        (["007", "12"], ["007", "12"]),
        (["-7", "12"], [-7, 12]),
        (["+7", "12"], ["+7", "12"]),
        (["7", "x"], ["7", "x"]),
        (["1.0", "2"], ["1.0", "2"]),
        ([" 7", "8"], [" 7", "8"]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["a\u2028b", "a\x1cb\x85"], ["a\u2028b", "a\x1cb\x85"]),
        (["NA", "null"], ["NA", "null"]),
    ],
)
def test_ids_are_never_recoded(tmp_path, users, expected):
    for separator, name in ((",", "x.csv"), ("::", "x.dat")):
        x = _read(tmp_path, _text(separator, [(user, "a") for user in users], ("user", "item")), name)
        assert sorted(x.user_ids.ids.tolist()) == sorted(expected)


def test_quoted_fields(tmp_path):
    x = _read(tmp_path, 'user,item,title\n"a,b","say ""hi""",t\n"two\nlines","c\r\nd",t\n')
    assert _rows(x) == [("a,b", 'say "hi"'), ("two\nlines", "c\r\nd")]
    assert _rows(_read(tmp_path, 'user\titem\n"a\tb"\n', "x.tsv")) == [('"a', 'b"')]
    with pytest.raises(InteractionError, match=r"x\.csv, line 4: value 'x' is no finite"):
        _read(tmp_path, 'user,item,value\n"two\nlines",b,1\na,b,x\n')


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_csv_without_commas(tmp_path, separator):
    assert _rows(_read(tmp_path, _text(separator, [("a b", "tea")], ("user", "item")))) == [("a b", "tea")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", b"", "x.csv is empty"),
        ("x.csv", b" \r\n\n", "x.csv is empty"),
        ("x.csv", b"\xef\xbb\xbf", "x.csv is empty"),
        ("x.jsonl", b"\n", "x.jsonl is empty"),
        ("x.parquet", b"", "x.parquet is empty"),
        ("x.csv.gz", gzip.compress(b"", mtime=0), "x.csv.gz is empty"),
        ("x.csv", b"user,item\n", "x.csv has no rows"),
        ("x.parquet", _parquet([]), "x.parquet has no rows"),
        ("x.csv", b"user,item\n1,2\n3\n", "x.csv, line 3: 1 fields where the first line has 2"),
        ("x.csv", b"user,item\n1,2\n\n3,4,5\n", "x.csv, line 4: 3 fields"),
        ("x.csv", b"user,item\n1,2\n \n", "x.csv, line 3: 1 fields"),
        ("x.csv", b'user,item\n"1",2\n3\n', "x.csv, line 3: 1 fields"),
        ("x.csv", b'user,item\n"1"0,2\n', "x.csv, line 2: "),
        ("x.csv", b'user,item\n1,2\n3,"4\n5,6\n', "x.csv, line 3: unexpected end of data"),
        ("x.dat", b"user::item\n1::2\n3:4\n", "x.dat, line 3: 1 fields"),
        ("x.csv", b"user,item\n1,\xff\n", "x.csv, line 2: byte 0xff is not UTF-8"),
        ("x.jsonl", b'{"user": 1, "item": "\xff"}\n', "x.jsonl, line 1: byte 0xff is not UTF-8"),
        ("x.csv", b"user,item\r1,2\r3,4", "x.csv, line 1: carriage return"),
        ("x.csv", b"user,item,item\n1,2,3\n", "x.csv, line 1: column names repeat"),
        ("x.csv", b"user,rating\n1,2\n", "x.csv: no item column among"),
        ("x.csv", b"1,2,3\n", "x.csv: no user column among"),
        ("x.csv", b"user,item,value\n1,2,3\n1,3,nan\n", "x.csv, line 3: value 'nan' is no finite"),
        ("x.csv", b"user,item,value\n1,2,-inf\n", "x.csv, line 2: value '-inf' is no finite"),
        ("x.csv", b"user,item,value\n1,2,1e39\n", r"x.csv, line 2: value '1e39' is no finite"),
        ("x.csv", b"user,item,value\n1,2,\n", "x.csv, line 2: value is missing"),
        ("x.csv", b"user,item,value\n1,2,five\n", "x.csv, line 2: value 'five'"),
        ("x.csv", b"user,item,time\n1,2,5\n1,3,soon\n", "x.csv, line 3: time 'soon' is no number and no date"),
        ("x.csv", b"user,item,time\n1,2,\n1,3,7\n", "x.csv, line 2: time is missing"),
        ("x.csv", b"user,item\n1,2\n,2\n", "x.csv, line 3: user is missing"),
        ("x.csv", b"user,item\n1,2\n\n1,2\n", "x.csv, line 4: user 1, item 2 occurs again"),
        ("x.jsonl", b'{"user": 1, "item": 2}\n\n{"user": 1}\n', "x.jsonl, line 3: item is missing"),
        ("x.jsonl", b'{"user": 1, "item": 2}\n{"user": 1,}\n', "x.jsonl, line 2: not a JSON object"),
        ("x.jsonl", b'{"user": 1, "item": 2}{"user": 2, "item": 2}\n', "x.jsonl, line 1: not a JSON object"),
        ("x.jsonl", b"[1, 2]\n", r"x.jsonl, line 1: not a JSON object, but \[1, 2\]"),
        ("x.jsonl", b"[" * 10**5, "x.jsonl, line 1: not a JSON object"),
        ("x.jsonl", b'{"user": 1, "item": 2}\n\n{"user": "1", "item": 2}\n', "line 3: user '1' is of type str"),
        ("x.jsonl", b'{"user": 1, "item": 2}\n{"user": true, "item": 2}\n', "line 2: user True is of type bool"),
        ("x.jsonl", b'{"user": 1.0, "item": 2}\n', "user ids must be whole numbers or text; the column is Float64"),
        ("x.jsonl", b'{"user": 1, "item": 2, "value": NaN}\n', "x.jsonl, line 1: value is missing"),
        ("x.jsonl", b'{"user": 1, "item": 2, "value": Infinity}\n', "x.jsonl, line 1: value inf is no finite"),
        ("x.jsonl", b"{}\n", "x.jsonl: no user column"),
        ("x.parquet", b"PAR1 and no more", "x.parquet is no readable Parquet file"),
        ("x.parquet", _parquet()[:-9], "x.parquet is no readable Parquet file"),
        ("x.parquet", _parquet([(1.5, 2)], ("user", "item")), "user ids must be whole numbers or text"),
        ("x.parquet", _parquet([(1, 2), (1, 2)], ("user", "item")), "x.parquet, row 1: user 1, item 2 occurs again"),
        ("x.csv.gz", b"user,item\n1,2\n", "x.csv.gz is no whole gzip file"),
        ("x.csv.gz", gzip.compress(_text(","), mtime=0)[:-5], "x.csv.gz is no whole gzip file"),
        ("x.csv.gz", gzip.compress(_text(","), mtime=0)[:-8] + b"12345678", "x.csv.gz is no whole gzip file"),
        ("x.csv.gz", gzip.compress(_text(","), mtime=0)[:12] + b"\xff" * 30, "x.csv.gz is no whole gzip file"),
    ],
)
def test_refused_by_file_and_line(tmp_path, name, data, message):
    with pytest.raises(InteractionError, match=message):
        _read(tmp_path, data, name)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_interactions(tmp_path / "none.csv")


def test_cleaning_options_are_passed_on(tmp_path):
    data = "user,item,value,time\n1,2,1,5\n1,2,3,4\n,7,1,1\n2,9,x,1\n"
    x = _read(tmp_path, data, missing="drop", duplicates="sum")
    assert _rows(x) == [(1, 2, 4.0, 5)]  # a missing id does not turn the others into text
    assert x.notes == ("2 rows with missing or non-finite values left out", "1 repeated pair merged by sum")


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [(Vocabulary.fit([12, 7]), [7]), (Vocabulary.fit(["12", "x"]), ["x"]), (Vocabulary.fit(["7", "x"]), ["7", "x"])],
)
def test_ids_are_read_as_the_vocabulary_has_them(tmp_path, vocabulary, expected):
    data = "user,item\n7,1\n007,1\nx,1\n"
    x = _read(tmp_path, data, user_ids=vocabulary, unknown="drop")
    assert [user for user, _ in _rows(x)] == expected
    with pytest.raises(InteractionError, match=r"x\.csv, line \d: user '(7|007|x)' is not in the given vocabulary"):
        _read(tmp_path, data, user_ids=vocabulary)


def test_whole_numbers_are_text_for_a_vocabulary_of_text(tmp_path):
    x = _read(tmp_path, "user,item\n7,1\n", user_ids=Vocabulary.fit(["7", "x"]))
    assert _rows(x) == [("7", 1)]


def _expected(texts):
    """What a column of id texts becomes: whole numbers if all spell one exactly, else the texts."""
    try:
        numbers = [int(text) for text in texts]
    except ValueError:
        return texts
    exact = all(str(n) == text and -(2**63) <= n < 2**63 for n, text in zip(numbers, texts, strict=True))
    return numbers if exact else texts


pieces = [
    b"1",
    b"2",
    b"a",
    b",",
    b",",
    b"\n",
    b"\n",
    b"\r",
    b" ",
    b"\0",
    b"\xff",
    b"\xc2\x85",
    b"\x1c",
    b"\xef\xbb\xbf",
]


@FUZZ
@given(st.one_of(st.lists(st.sampled_from(pieces), max_size=30).map(b"".join), st.binary(max_size=30)))
def test_any_bytes_are_read_row_by_row_or_refused(tmp_path, data):
    try:
        x = _read(tmp_path, b"user,item\n" + data, duplicates="sum")
    except InteractionError:
        return
    if b'"' in data:
        return
    lines = [line.removesuffix("\r") for line in data.decode().split("\n")]
    users, items = zip(*[line.split(",") for line in lines if line], strict=True)
    rows = list(zip(_expected(users), _expected(items), strict=True))
    assert sorted(_rows(x), key=repr) == sorted([(*row, rows.count(row)) for row in set(rows)], key=repr)


@FUZZ
@given(st.sampled_from(["x.csv.gz", "x.jsonl", "x.dat"]), st.binary(max_size=40), st.integers(0, 200))
def test_damaged_files_are_refused_or_read(tmp_path, name, noise, at):
    whole = {"x.csv.gz": gzip.compress(_text(","), mtime=0), "x.jsonl": _json(), "x.dat": _text("::")}[name]
    try:
        x = _read(tmp_path, whole[:at] + noise + whole[at + len(noise) :], name)
    except InteractionError:
        return
    assert x.nnz > 0


def test_parquet_with_one_wrong_byte_is_refused_or_read(tmp_path):
    # One byte and not noise: a page header that asks for 2**61 bytes ends the process inside polars.
    refused = 0
    for at in range(4, 244):
        damaged = bytearray(_parquet())
        damaged[at] = 0
        try:
            assert _read(tmp_path, bytes(damaged), "x.parquet").nnz > 0
        except InteractionError:
            refused += 1
    assert refused > 0


cells = st.text(st.sampled_from('1207a,";|\t \n\r\0é\u2028'), max_size=4)
numbers = st.one_of(st.floats(allow_nan=False, allow_infinity=False).map(repr), st.integers(-(10**6), 10**6).map(str))


@FUZZ
@given(st.lists(st.tuples(cells, cells, numbers), min_size=1, max_size=6))
def test_cells_written_by_csv_come_back(tmp_path, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("user", "item", "value"), *rows])
    users, items, values = (list(column) for column in zip(*rows, strict=True))
    with np.errstate(over="ignore"):
        narrow = [float(np.float32(value)) for value in values]
    sound = (
        all(cell and not cell.endswith("\0") for cell in users + items)
        and np.isfinite(narrow).all()
        and len({(user, item) for user, item, _ in rows}) == len(rows)
    )
    try:
        x = _read(tmp_path, text.getvalue())
    except InteractionError:
        # Without a quotation mark anywhere a lone carriage return is taken for a damaged line end.
        assert not sound or any("\r" in cell for cell in users + items)
        return
    assert sound
    rows = zip(_expected(users), _expected(items), narrow, strict=True)
    assert sorted(_rows(x), key=repr) == sorted(rows, key=repr)


json_cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.none(), max_size=1),
)
json_rows = st.lists(st.tuples(*[st.one_of(st.integers(0, 3), st.text("ab", min_size=1), json_cells)] * 2), max_size=4)


@FUZZ
@given(json_rows)
def test_json_cells_come_back_with_their_types_or_are_refused(tmp_path, rows):
    try:
        x = _read(tmp_path, _json(rows, ("user", "item")), "x.jsonl")
    except InteractionError:
        ids = [column for column in zip(*rows, strict=True) if column]
        sound = len(set(map(repr, rows))) == len(rows) > 0 and all(
            all(type(i) is int and abs(i) < 2**63 for i in column) or all(isinstance(i, str) and i for i in column)
            for column in ids
        )
        assert not sound or any(isinstance(i, str) and i.endswith("\0") for row in rows for i in row)
        return
    assert sorted(map(repr, _rows(x))) == sorted(map(repr, rows))
