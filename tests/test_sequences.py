"""Sequences, their parts, and the rows that batches are cut of."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affinax.engine.data import InteractionError, Interactions, Sequences, Vocabulary, read_sequences
from affinax.engine.training import sequence_batches
from affinax.kernels.packing import host_pack

SEED = np.array([3, 7], np.uint32)


def some(n_users=7, n_items=30, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, n_users)
    lengths[:2] = 1, 11
    users = np.repeat(np.arange(n_users), lengths)
    items, times = rng.integers(0, n_items, len(users)), rng.integers(0, 50, len(users))
    return Sequences.from_events(users, items, times, kinds=items % 3, n_users=n_users, n_items=n_items)


def windows_of(batch, row):
    """Of each window of a row its items, targets, positions."""
    for number in range(batch["segments"][row].max() + 1):
        where = batch["segments"][row] == number
        yield tuple(batch[name][row][where].tolist() for name in ("items", "targets", "positions"))


def test_events_are_in_order_of_time_and_ties_in_that_given():
    x = Sequences.from_events([1, 0, 1, 1, 0], [5, 6, 7, 8, 6], timestamps=[3, 2, 1, 3, 1], kinds=[0, 1, 2, 3, 4])
    assert x.items_of(0).tolist() == [6, 6]
    assert x.items_of(1).tolist() == [7, 5, 8]
    assert x.kinds.tolist() == [4, 1, 2, 0, 3]
    assert x.since_first().tolist() == [0, 1, 0, 2, 2]
    assert Sequences.from_events([1, 0, 1], [5, 6, 4]).items.tolist() == [6, 5, 4]
    with pytest.raises(ValueError, match="read-only"):
        x.items[0] = 0


def test_interactions_become_sequences_and_again_interactions():
    x = Interactions.from_coo([0, 0, 0, 1], [3, 1, 2, 0], timestamps=[5, 5, 4, 1])
    sequences = Sequences.from_interactions(x)
    assert sequences.items.tolist() == [2, 1, 3, 0]  # at the same time by item
    back = sequences.interactions()
    assert (back.items == x.items).all()
    assert (back.timestamps == x.timestamps).all()
    repeated = Sequences.from_events([0, 0, 0], [4, 2, 4], timestamps=[1, 2, 9]).interactions()
    assert repeated.items.tolist() == [2, 4]
    assert repeated.timestamps.tolist() == [2, 9]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sequences.from_events([], []), "no events"),
        (lambda: Sequences.from_events([0, 1], [0]), "one length"),
        (lambda: Sequences.from_events([0], [9], n_items=5), r"item id 9 is outside \[0, 5\)"),
        (lambda: Sequences.from_events([0], [1], [np.nan]), "timestamp"),
        (lambda: Sequences.from_events([0], [1], kinds=[-1]), r"kind id -1"),
        (lambda: Sequences.from_interactions(Interactions.from_coo([0], [0])), "need timestamps"),
        (lambda: some().items_of(9), r"outside \[0, 7\)"),
        (lambda: some().select(np.ones(3, bool)), "keep must be bool"),
        (lambda: Sequences.from_events([0, 1], [0, 1]).leave_last(), "the test part is empty"),
        (lambda: Sequences.from_events([0, 1], [0, 1]).split_at_time(), "needs timestamps"),
        (lambda: Sequences.from_events([0, 1], [0, 1], [3, 3]).split_at_time(), "part is empty"),
        (lambda: Sequences.from_events([0, 0], [0, 1], [0, 0.5]).since_first(), "time 0.5 is no whole number"),
        (lambda: Sequences.from_events([0, 0], [0, 1], [0, 2**40]).since_first(), "more than int32 holds"),
        (lambda: Sequences.from_events([0], [0]).since_first(), "no timestamps"),
    ],
)
def test_what_no_sequences_can_be_made_of(build, message):
    with pytest.raises(InteractionError, match=message):
        build()


def test_what_is_no_interactions():
    with pytest.raises(TypeError, match="must be Interactions"):
        Sequences.from_interactions({"users": [0]})
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        some().leave_last(0)


def test_leaving_the_last_out_says_what_leaks():
    x = Sequences.from_events([0, 0, 0, 1, 1, 2], [4, 5, 4, 6, 7, 8], timestamps=[1, 2, 3, 4, 9, 5])
    train, test = x.leave_last()
    assert train.items.tolist() == [4, 5, 6, 8]
    assert list(zip(test.users.tolist(), test.items.tolist(), strict=True)) == [(0, 4), (1, 7)]
    assert any("50% of the tested events are not later" in note for note in train.notes)
    assert any("1 of the tested events are of items that their user met before" in note for note in train.notes)
    train, test = x.split_at_time(0.4)
    assert train.timestamps.max() == 4
    assert test.nnz == 2
    assert not any("leaks" in note for note in train.notes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(9, 12))
def test_packing_keeps_windows_apart(lengths, capacity):
    rows, starts = host_pack(np.array(lengths), capacity)
    used = np.zeros((rows.max() + 1, capacity), int)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        assert start + length <= capacity
        used[row, start : start + length] += 1
    assert used.max() == 1
    # What begins a row had no room in those before, which only became fuller: no two rows fit into one.
    sums = np.sort(used.sum(axis=1))
    assert len(sums) == 1 or sums[0] + sums[1] > capacity


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("windows", ["last", "all"])
def test_windows_hold_what_users_met(layout, windows):
    x, length = some(), 4
    batches = sequence_batches(1, length, layout=layout, windows=windows)(x, SEED)
    found = []
    for step in range(1, batches.examples + 1):
        batch = batches.make(step)
        assert all(a.shape == (1, length) and a.dtype == np.int32 for a in batch.values())
        padding = batch["segments"] < 0
        assert all((batch[name][padding] == -1).all() for name in ("items", "targets", "positions", "kinds"))
        assert (batch["kinds"] == np.where(padding, -1, batch["items"] % 3)).all()
        found += list(windows_of(batch, 0))
        if layout == "padded":
            assert (np.diff(padding[0].astype(int)) <= 0).all()  # at the left
            assert batch["segments"].max() == 0
    expected = []
    for user in range(x.n_users):
        items = x.items_of(user).tolist()
        end = len(items) - 1
        while end > 0:
            begin = max(end - length, 0)
            n = end - begin
            expected.append((items[begin:end], items[begin + 1 : end + 1], list(range(length - n, length))))
            end = begin if windows == "all" else 0
    assert sorted(found) == sorted(expected)


def test_masks_are_what_is_to_be_predicted():
    x = some(n_users=200, seed=1)
    plain = sequence_batches(8, 6, objective="masked", mask_share=0.3, last_share=0.2)(x, SEED)
    share, lasts, windows = [], 0, 0
    for step in range(1, 40):
        batch = plain.make(step)
        masked = batch["items"] == x.n_items
        assert (masked == (batch["targets"] >= 0)).all()
        for row in range(8):
            for items, targets, _ in windows_of(batch, row):
                hidden = [item == x.n_items for item in items]
                assert any(hidden)
                assert all((t >= 0) == h for t, h in zip(targets, hidden, strict=True))
                share.append(np.mean(hidden))
                if len(items) == 6:
                    windows += 1
                    lasts += hidden == [False] * 5 + [True]
    assert 0.25 < np.mean(share) < 0.6
    # A fifth by choice, and those where chance masks the last alone, or nothing.
    assert lasts / windows == pytest.approx(0.2 + 0.8 * (0.7**5 * 0.3 + 0.7**6), abs=0.06)
    again = plain.make(3)
    assert all((again[name] == plain.make(3)[name]).all() for name in again)
    assert (again["items"] != plain.make(4)["items"]).any()


def test_negatives_of_places_were_never_met():
    x = some()
    batch = sequence_batches(2, 5, negatives=6, negatives_for="place", layout="padded")(x, SEED).make(1)
    assert batch["negatives"].shape == (2, 5, 6)
    for row, items in enumerate(batch["items"]):
        targets = batch["targets"][row][items >= 0].tolist()
        user = next(u for u in range(x.n_users) if x.items_of(u)[1:][-5:].tolist() == targets)
        drawn = batch["negatives"][row][items >= 0]
        assert not np.isin(drawn, x.items_of(user)).any()
        assert (batch["negatives"][row][items < 0] == -1).all()


@pytest.mark.parametrize(("each", "shape"), [("row", (2, 1000)), ("batch", (1000,))])
def test_negatives_of_many_places_are_as_popular(each, shape):
    x = some()
    drawn = sequence_batches(2, 5, negatives=1000, negatives_for=each, popularity=1.0)(x, SEED).make(1)["negatives"]
    assert drawn.shape == shape
    counts = np.bincount(x.items, minlength=x.n_items) / len(x)
    for line in drawn.reshape(-1, 1000):
        assert np.abs(np.bincount(line, minlength=x.n_items) / 1000 - counts).max() < 0.05
    assert each == "batch" or (drawn[0] != drawn[1]).any()


def test_times_come_where_they_are_asked_for():
    x = some()
    assert "times" not in sequence_batches(1, 5)(x, SEED).make(1)
    batch = sequence_batches(1, 20, layout="padded", times=True)(x, SEED).make(1)
    times = batch["times"][batch["segments"] >= 0]
    assert (np.diff(times) >= 0).all()
    assert times[0] == 0
    half = Sequences.from_events([0, 0], [0, 1], [0, 0.5])
    sequence_batches(1, 5)(half, SEED)
    with pytest.raises(InteractionError, match="whole number"):
        sequence_batches(1, 5, times=True)(half, SEED)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"length": 0}, "length=0 must be a whole number, at least 1"),
        ({"length": 2.5}, "length=2.5 must be a whole number"),
        ({"negatives": -1}, "negatives=-1 must be a whole number, at least 0"),
        ({"mask_share": 1.0}, r"mask_share=1.0 must be in \(0, 1\)"),
        ({"objective": "all"}, "objective='all' must be one of"),
        ({"layout": "ragged"}, "layout='ragged' must be one of"),
        ({"windows": "first"}, "windows='first' must be one of"),
    ],
)
def test_batches_that_cannot_be(choice, message):
    with pytest.raises(ValueError, match=message):
        sequence_batches(**({"batch_size": 1, "length": 5} | choice))


def test_data_that_batches_cannot_be_cut_of():
    lonely = Sequences.from_events([0, 1], [0, 1])
    with pytest.raises(InteractionError, match="no user has two events or more"):
        sequence_batches(1, 5)(lonely, SEED)
    with pytest.raises(InteractionError, match="more than the"):
        sequence_batches(100, 5)(some(), SEED)
    assert sequence_batches(None, 5)(some(), SEED).size >= 1
    assert sequence_batches(1, 5, objective="masked")(lonely, SEED).examples == 1
    with pytest.raises(InteractionError, match="need timestamps"):
        sequence_batches(1, 5)(Interactions.from_coo([0, 0], [0, 1]), SEED)


def test_a_history_of_ten_thousand_events():
    x = Sequences.from_events(np.zeros(10_000, int), np.arange(10_000) % 97)
    last = sequence_batches(1, 50)(x, SEED)
    assert last.examples == 1
    assert last.make(1)["targets"][0, -1] == 9999 % 97
    assert sequence_batches(1, 50, windows="all")(x, SEED).examples == 200


EVENTS = pl.DataFrame(
    {"user": ["ann", "bob", "ann", "ann", "bob"], "item": ["tea", "rye", "rye", "tea", "oat"], "time": [4, 9, 1, 2, 3]}
)


def test_files_and_frames_keep_repetitions(tmp_path):
    EVENTS.write_csv(tmp_path / "events.csv")
    for source in (EVENTS, EVENTS.to_pandas(), tmp_path / "events.csv", str(tmp_path / "events.csv")):
        x = read_sequences(source)
        assert [x.item_ids.ids[x.items_of(user)].tolist() for user in (0, 1)] == [["rye", "tea", "tea"], ["oat", "rye"]]
        assert x.user_ids.ids.tolist() == ["ann", "bob"]
        assert x.timestamps.tolist() == [1, 2, 4, 3, 9]
        assert x.notes == ()
    named = read_sequences(tmp_path / "events.csv", columns={"user": "user", "item": "time"}, header=True)
    assert named.item_ids.ids[named.items_of(0)].tolist() == [4, 1, 2]
    assert named.notes == ("no times: the order of the rows is taken for theirs",)
    rated = read_sequences(EVENTS.with_columns(value=pl.Series([1.0, 2.0, 3.0, 4.0, 5.0])), min_value=2)
    assert [rated.items_of(user).tolist() for user in (0, 1)] == [[1, 2], [0, 1]]
    assert rated.notes == (
        "1 row outside the value thresholds left out",
        "values left out, of which sequences have none",
    )
    known = read_sequences(EVENTS, item_ids=Vocabulary(["oat", "tea"]), unknown="drop")
    assert known.items.tolist() == [1, 1, 0]
    assert known.notes == ("2 rows with unknown ids left out",)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"item_ids": Vocabulary(["oat"])}, InteractionError, "item 'tea' is not in the given vocabulary"),
        ({"columns": ["user", "price"]}, InteractionError, "price"),
        ({"header": True}, ValueError, "header=True are of files"),
        ({"missing": "guess"}, ValueError, "missing='guess' must be one of"),
        ({"duplicates": "last"}, TypeError, "duplicates"),
    ],
)
def test_events_that_cannot_be_read(options, error, message):
    with pytest.raises(error, match=message):
        read_sequences(EVENTS, **options)


def test_no_events_and_times_far_apart():
    none = Sequences.from_events([1], [3], [5]).select(np.array([False]))
    assert none.since_first().shape == (0,)
    with pytest.raises(InteractionError, match="no events: at least two are needed"):
        none.split_at_time()
    far = Sequences.from_events([0, 0], [0, 1], [-(2**62) - 2**61, 2**62 + 2**61])
    with pytest.raises(InteractionError, match="span 13,835,058,055,282,163,712, more than int32 holds"):
        far.since_first()


def test_missing_times():
    gap = EVENTS.with_columns(pl.Series("time", [4, None, 1, 2, 3]))
    with pytest.raises(InteractionError, match=r"row 1: time is missing.*missing=\"drop\""):
        read_sequences(gap)
    assert len(read_sequences(gap, missing="drop")) == 4


def test_the_command_line_keeps_repetitions(run, tmp_path):
    rng = np.random.default_rng(0)
    rows = {"user": np.repeat(np.arange(20), 6), "item": rng.integers(0, 5, 120), "time": np.arange(120)}
    pl.DataFrame(rows).write_csv(tmp_path / "plays.csv")
    pl.DataFrame({"item": np.arange(6), "kind": list("aabbcc")}).write_csv(tmp_path / "items.csv")
    fit = ["fit", tmp_path / "plays.csv", "--out", tmp_path / "model", "--algorithm", "sasrec", "--set", "epochs=1"]
    fit += ["--set", "width=8", "--set", "length=6", "--set", "content=kind", "--item-features", tmp_path / "items.csv"]
    assert "--duplicates keep" in run(*fit)[2]
    status, text, _ = run(*fit, "--duplicates", "keep")
    assert status == 0
    assert "120 rows, 20 users, 6 items" in text
    assert run("recommend", tmp_path / "model", "--user", "3")[0] == 0
    both = ["--duplicates", "keep", "--algorithm", "sasrec"]
    few = ["--set", "sasrec.width=8", "--set", "sasrec.length=6", "--set", "sasrec.epochs=1"]
    options = ["--algorithm", "popularity", *few, "-k", "2", "--split", "leave-last"]
    status, text, error = run("evaluate", tmp_path / "plays.csv", *both, *options)
    assert status == 0, error
    assert "split at the last 1 of each user" in text
    assert "100 events to train on" in text
    grid = ["--grid", "width=4,8", "--epochs", "1", "--split", "leave-last"]
    status, text, error = run("tune", tmp_path / "plays.csv", *both, *grid)
    assert status == 0, error
    assert "--duplicates keep" in text
    assert "sequences" in run("tune", tmp_path / "plays.csv", *both, "--algorithm", "bpr")[2]
    assert "--split random" in run("evaluate", tmp_path / "plays.csv", *both, "--split", "random")[2]
    status, _, error = run(*fit, "--duplicates", "keep", "--user-features", tmp_path / "items.csv")
    assert status != 0
    assert "sequences have a table of their items alone" in error
