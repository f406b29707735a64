"""Train and test parts: nothing lost, nothing twice, and the leak rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affinax.engine.data import InteractionError, Interactions, split_at_time, split_leave_last, split_random

N_USERS, N_ITEMS = 4, 5
times = st.lists(st.integers(0, 6), min_size=N_USERS * N_ITEMS, max_size=N_USERS * N_ITEMS)


def _full(times):
    users, items = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    return Interactions.from_coo(users, items, np.arange(20.0), timestamps=times)


def _check_parts(x, train, test):
    both = sorted([*train.values.tolist(), *test.values.tolist()])
    assert both == x.values.tolist()
    assert train.shape == test.shape == x.shape


@pytest.mark.parametrize(("fraction", "n_test"), [(0.25, 5), (0.5, 10), (0.01, 1)])
def test_random_takes_its_share_and_depends_on_the_seed(fraction, n_test):
    x = _full(range(20))
    train, test = split_random(x, fraction, seed=3)
    _check_parts(x, train, test)
    assert test.nnz == n_test
    assert test.values.tolist() == split_random(x, fraction, seed=3)[1].values.tolist()
    assert any(test.values.tolist() != split_random(x, fraction, seed=s)[1].values.tolist() for s in range(4, 9))


@settings(deadline=None, max_examples=60)
@given(times, st.integers(1, N_ITEMS - 1), st.permutations(range(N_USERS * N_ITEMS)))
def test_leave_last_takes_the_latest_of_each_user_in_any_input_order(times, n, order):
    x = _full(times)
    users, items = np.divmod(np.asarray(order), N_ITEMS)
    shuffled = Interactions.from_coo(users, items, np.asarray(order, float), np.asarray(times)[list(order)])
    train, test = split_leave_last(shuffled, n)
    _check_parts(x, train, test)
    for user in range(N_USERS):
        latest = sorted(range(N_ITEMS), key=lambda item: (times[user * N_ITEMS + item], item))[-n:]
        assert test.items_of(user).tolist() == sorted(latest)


def test_leave_last_keeps_short_histories_in_training():
    x = Interactions.from_coo([0, 0, 1, 3], [0, 1, 0, 1], timestamps=[2, 1, 5, 9], n_users=4)
    train, test = split_leave_last(x)
    assert test.users.tolist() == [0]
    assert test.items.tolist() == [0]
    assert train.users.tolist() == [0, 1, 3]
    with pytest.raises(InteractionError, match="test part is empty"):
        split_leave_last(x, 2)


@settings(deadline=None, max_examples=60)
@given(times, st.floats(0.01, 0.99))
def test_time_cut_leaks_nothing(times, fraction):
    x = _full(times)
    try:
        train, test = split_at_time(x, fraction)
    except InteractionError:
        n_train = 20 - max(1, round(fraction * 20))
        assert sorted(times)[max(n_train - 1, 0)] == max(times)  # only then is nothing left to test
        return
    _check_parts(x, train, test)
    assert train.timestamps.max() < test.timestamps.min()
    assert test.nnz <= max(1, round(fraction * 20))


def test_time_cut_by_hand():
    x = Interactions.from_coo([0, 1, 2, 3], [0, 0, 0, 0], timestamps=[4.5, 1.5, 3.0, 3.0])
    train, test = split_at_time(x, 0.5)
    assert test.users.tolist() == [0]
    assert "split at time 3.0" in train.notes[-1]


@pytest.mark.parametrize("split", [split_leave_last, split_at_time])
def test_a_split_by_time_needs_times(split):
    with pytest.raises(InteractionError, match="needs timestamps"):
        split(Interactions.from_coo([0, 0], [0, 1]))


@pytest.mark.parametrize("split", [split_random, split_at_time])
@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_fraction_out_of_range(split, fraction):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        split(_full(range(20)), fraction)


def test_parts_that_would_be_empty():
    one = Interactions.from_coo([0], [0], timestamps=[1])
    equal = Interactions.from_coo([0, 1], [0, 0], timestamps=[1, 1])
    for split, x in ((split_random, one), (split_leave_last, one), (split_at_time, one), (split_at_time, equal)):
        with pytest.raises(InteractionError, match="part is empty"):
            split(x)
    with pytest.raises(ValueError, match="n=0"):
        split_leave_last(one, 0)


@pytest.mark.parametrize(
    ("how", "options", "split"),
    [
        ("random", {"seed": 5}, split_random),
        ("leave-last", {"n": 2}, split_leave_last),
        ("time", {"fraction": 0.4}, split_at_time),
    ],
)
def test_split_by_name(how, options, split):
    x = _full(range(20))
    assert x.split(how, **options)[1].values.tolist() == split(x, **options)[1].values.tolist()
    with pytest.raises(ValueError, match="how='else'"):
        x.split("else")
