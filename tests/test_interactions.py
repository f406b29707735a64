"""`Interactions`: invariants, refusals, and the forms it takes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from affinax.engine.data import InteractionError, Interactions, Vocabulary
from affinax.kernels import csr

from . import naive

INF, NAN = np.inf, np.nan


def _example(**more):
    """User 1 has no interactions and neither has item 2; the input is not sorted."""
    given = {"values": [5.0, 3.0, 1.0, 2.0], "timestamps": [40, 10, 20, 30], "n_users": 3, "n_items": 4} | more
    return Interactions.from_coo([2, 0, 2, 0], [3, 1, 0, 0], **given)


def _check_invariants(x):
    assert x.indptr.dtype == np.int64
    assert x.items.dtype == np.int32
    assert x.indptr[0] == 0
    assert x.indptr[-1] == x.nnz == len(x.items) == len(x)
    assert (np.diff(x.indptr) >= 0).all()
    for user in range(x.n_users):
        assert (np.diff(x.items_of(user)) > 0).all()
    assert ((x.items >= 0) & (x.items < x.n_items)).all()


def test_unsorted_input_with_gaps_is_sorted_with_its_values_and_times():
    x = _example()
    _check_invariants(x)
    assert x.shape == (3, 4)
    assert x.users.tolist() == [0, 0, 2, 2]
    assert x.items.tolist() == [0, 1, 0, 3]
    assert x.values.tolist() == [2, 3, 1, 5]
    assert x.timestamps.tolist() == [30, 10, 20, 40]
    assert x.items_of(1).tolist() == []


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=8),
    st.lists(st.floats(width=32), min_size=8, max_size=8),
    st.sampled_from([None, 3, 5]),
)
def test_from_coo_is_faithful_or_refuses(pairs, values, n):
    users, items = [u for u, _ in pairs], [i for _, i in pairs]
    values = values[: len(pairs)]
    limit = 4 if n is None else n - 1
    sound = (
        len(pairs) > 0
        and len(set(pairs)) == len(pairs)
        and all(0 <= u <= limit and 0 <= i <= limit for u, i in pairs)
        and np.isfinite(values).all()
    )
    if not sound:
        with pytest.raises(InteractionError):
            Interactions.from_coo(users, items, values, n_users=n, n_items=n)
        return
    x = Interactions.from_coo(users, items, values, n_users=n, n_items=n)
    _check_invariants(x)
    assert x.n_users == (n or max(users) + 1)
    _, order = naive.csr_rows(users, items, x.n_users)
    assert list(zip(x.users.tolist(), x.items.tolist(), strict=True)) == [pairs[k] for k in order]
    assert x.values.tolist() == [values[k] for k in order]


cells = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 3), st.floats(), st.text(max_size=2), st.binary())


@settings(deadline=None, max_examples=100)
@given(*[st.one_of(st.lists(cells, max_size=3), cells) for _ in range(4)])
def test_from_coo_meets_anything_with_a_typed_error(users, items, values, timestamps):
    try:
        x = Interactions.from_coo(users, items, values, timestamps)
    except InteractionError:
        return
    _check_invariants(x)
    assert sorted(zip(x.users.tolist(), x.items.tolist(), strict=True)) == sorted(zip(users, items, strict=True))


@pytest.mark.parametrize(
    ("users", "items", "options", "message"),
    [
        ([], [], {}, "at least one is needed"),
        ([0, -1], [0, 0], {}, "user id -1 is outside .* position 1"),
        ([0], [-1], {}, "item id -1 is outside"),
        ([0, 3], [0, 0], {"n_users": 3}, "user id 3 is outside .*n_users=3.* position 1"),
        ([0], [5], {"n_items": 5}, "item id 5 is outside"),
        ([0], [5], {"item_ids": Vocabulary.fit(["a", "b"])}, "item id 5 is outside"),
        ([0], [0], {"n_users": -1}, "n_users=-1"),
        ([0], [0], {"n_users": 3, "user_ids": Vocabulary.fit(["a"])}, "user_ids has 1 ids for 3 users"),
        ([0.0], [0], {}, "user ids must be whole numbers; got float64"),
        ([0], [True], {}, "item ids must be whole numbers; got bool"),
        (["ann"], [0], {}, "user ids must be whole numbers; got <U3"),
        ([0, "ann"], [0, 1], {}, "user ids must be whole numbers"),
        ([0, None], [0, 1], {}, "user ids must be whole numbers; got object"),
        ([2**31 - 1], [0], {}, "user id 2147483647 is outside"),
        ([0], [2**31], {}, "item id 2147483648 is outside"),
        ([2**30, 0], [0, 1], {}, "user id 1073741824 would make 1,073,741,825 users of 2 interactions.*n_users="),
        (np.array([2**63], np.uint64), [0], {}, "user id 9223372036854775808 is outside"),
        ([0, 1], [0], {}, "one length; got .*'users': 2, 'items': 1"),
        ([[0]], [0], {}, r"one-dimensional; got shape \(1, 1\)"),
        ([[0], [1, 2]], [0], {}, "one-dimensional"),
        (np.ma.masked_array([0, 1], [False, True]), [0, 1], {}, "users are masked at 1 places"),
        ([0, 1, 0], [0, 0, 0], {}, "user 0, item 0 occurs more than once, again at position 2"),
        ([0, 1], [0, 0], {"values": [1.0, NAN]}, "value nan at position 1"),
        ([0, 1], [0, 0], {"values": [INF, 1.0]}, "value inf at position 0"),
        ([0], [0], {"values": [1e39]}, r"value 1e\+39 at position 0"),
        ([0, 1], [0, 0], {"values": [1.0]}, "one length"),
        ([0], [0], {"values": ["5"]}, "values must be numbers"),
        ([0], [0], {"values": [1j]}, "values must be numbers"),
        ([0, 1], [0, 0], {"values": [1.0, None]}, "values must be numbers"),
        ([0], [0], {"timestamps": [NAN]}, "timestamp nan at position 0"),
        ([0], [0], {"timestamps": ["monday"]}, "timestamps must be numbers or datetimes"),
        ([0], [0], {"timestamps": np.array([2**63], np.uint64)}, "does not fit int64"),
        ([0], [0], {"timestamps": np.array(["NaT"], "datetime64[s]")}, "timestamp missing at position 0"),
    ],
)
def test_from_coo_refuses(users, items, options, message):
    with pytest.raises(InteractionError, match=message):
        Interactions.from_coo(users, items, **options)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.uint64])
def test_ids_of_any_whole_type(dtype):
    assert Interactions.from_coo(np.array([1, 0], dtype), [0, 1]).users.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("times", "expected", "dtype"),
    [
        (["2001-09-09T01:46:40"], 10**9, np.int64),
        (["2001-09-09T01:46:40.250"], 10**9 + 0.25, np.float64),
        (["1969-12-31T23:59:59"], -1, np.int64),
    ],
)
def test_datetimes_become_seconds(times, expected, dtype):
    x = Interactions.from_coo([0], [0], timestamps=np.array(times, "datetime64[ns]"))
    assert x.timestamps.tolist() == [expected]
    assert x.timestamps.dtype == dtype


def test_nothing_can_be_changed():
    values = np.array([1.0, 2.0])
    x = Interactions.from_coo([0, 1], [0, 1], values)
    values[0] = 9
    assert x.values.tolist() == [1, 2]
    for array in (x.indptr, x.items, x.values, x.users):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        x.n_items = 7


@pytest.mark.parametrize("kind", ["csr_matrix", "coo_matrix", "csc_array", "coo_array"])
def test_scipy_both_ways(kind):
    matrix = getattr(scipy.sparse, kind)(np.array([[0, 2.0], [0, 0], [3.0, 1.0]]))
    x = Interactions.from_scipy(matrix)
    assert x.shape == (3, 2)
    np.testing.assert_array_equal(x.to_scipy().toarray(), matrix.toarray())


def test_scipy_keeps_stored_zeros_and_refuses_repeated_pairs_and_vectors():
    stored = scipy.sparse.coo_array(([0.0, 1.0], ([0, 1], [0, 1])), shape=(2, 2))
    assert Interactions.from_scipy(stored).values.tolist() == [0, 1]
    with pytest.raises(InteractionError, match="more than once"):
        Interactions.from_scipy(scipy.sparse.coo_array(([1, 2], ([0, 0], [1, 1])), shape=(2, 2)))
    with pytest.raises(InteractionError, match="n_users, n_items"):
        Interactions.from_scipy(scipy.sparse.coo_array(np.array([1.0, 2.0])))


def test_to_scipy_without_values_holds_ones():
    assert Interactions.from_coo([0], [1]).to_scipy().toarray().tolist() == [[0, 1]]


def test_to_device_gives_both_orientations():
    data = _example().to_device()
    dense = [[2, 3, 0, 0], [0, 0, 0, 0], [1, 0, 0, 5]]
    for side, expected in ((data.by_user, np.array(dense)), (data.by_item, np.array(dense).T)):
        assert all(isinstance(array, jax.Array) for array in side)
        assert [array.dtype.name for array in side] == ["int32", "int32", "float32"]
        matrix = scipy.sparse.csr_array((side.values, side.indices, side.indptr), shape=expected.shape)
        np.testing.assert_array_equal(matrix.toarray(), expected)
        assert side.n_rows == len(expected)
    assert data.shape == (3, 4)
    assert Interactions.from_coo([0, 1], [0, 0]).to_device().by_item.values.tolist() == [1]


@pytest.mark.parametrize("values", [None, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])
@pytest.mark.parametrize("max_entries", [3, 4, 5, 100])
def test_blocks_have_one_shape_and_lose_nothing(values, max_entries):
    users, items = [0, 0, 0, 2, 2, 5, 5], [0, 1, 2, 1, 3, 0, 3]
    x = Interactions.from_coo(users, items, values, n_users=8)
    blocks = list(x.blocks(max_entries))
    assert len({tuple(array.shape for array in block) for _, block in blocks}) == 1
    found, first_expected = [], 0
    for (first, block), last in zip(blocks, [first for first, _ in blocks[1:]] + [x.n_users], strict=True):
        assert first == first_expected
        first_expected = last
        assert isinstance(block, csr.CSR)
        assert block.nnz <= max_entries
        assert (np.diff(block.indptr)[last - first :] == 0).all()
        for row in range(last - first):
            for k in range(block.indptr[row], block.indptr[row + 1]):
                found.append((first + row, int(block.indices[k]), float(block.values[k if values else 0])))
    assert found == list(zip(users, items, values or [1.0] * 7, strict=True))


@pytest.mark.parametrize("max_entries", [0, 1, 2**31])
def test_blocks_out_of_range(max_entries):
    with pytest.raises(InteractionError, match="max_entries"):
        next(_example().blocks(max_entries))


def test_select_keeps_indices_and_notes():
    x = _example().select(np.array([False, True, True, True]), note="one left out")
    _check_invariants(x)
    assert x.shape == (3, 4)
    assert x.items.tolist() == [1, 0, 3]
    assert x.values.tolist() == [3, 1, 5]
    assert x.timestamps.tolist() == [10, 20, 40]
    assert x.notes == ("one left out",)


@pytest.mark.parametrize("keep", [np.ones(3, bool), np.ones(4, int)])
def test_select_refuses(keep):
    with pytest.raises(InteractionError, match="keep must be bool"):
        _example().select(keep)


def test_with_values():
    x = _example()
    assert x.with_values(np.arange(4.0)).values.tolist() == [0, 1, 2, 3]
    assert x.with_values(None).values is None
    with pytest.raises(InteractionError, match="3 values for 4"):
        x.with_values(np.arange(3.0))
    with pytest.raises(InteractionError, match="nan"):
        x.with_values(np.array([1, 2, 3, NAN]))


@pytest.mark.parametrize("user", [-1, 3])
def test_items_of_a_user_that_is_not_there(user):
    with pytest.raises(InteractionError, match="outside"):
        _example().items_of(user)


@pytest.mark.on_cpu
def test_a_device_that_is_the_host_takes_the_arrays_as_they_are_and_a_donation_spares_them():
    x = Interactions.from_coo(np.arange(100) % 10, np.arange(100) // 10, np.arange(100.0))
    data = x.to_device()
    assert data.by_user.values.unsafe_buffer_pointer() == x.values.ctypes.data
    jax.jit(lambda d: jax.tree.map(lambda a: a + 1, d), donate_argnums=0)(data)
    np.testing.assert_array_equal(x.to_device().by_user.values, x.values)
    assert x.values.max() == 99
