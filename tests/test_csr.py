"""The host kernels that build compressed sparse rows, against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affinax.kernels import csr

from . import naive

N_ROWS, N_COLUMNS = 5, 4
pairs = st.lists(st.tuples(st.integers(0, N_ROWS - 1), st.integers(0, N_COLUMNS - 1)), max_size=24)


def _arrays(pairs):
    array = np.asarray(pairs, np.int32).reshape(-1, 2)
    return array[:, 0].copy(), array[:, 1].copy()


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_sort_pairs_orders_by_row_column_and_position(pairs):
    rows, columns = _arrays(pairs)
    order, indptr = csr.sort_pairs(rows, columns, N_ROWS, N_COLUMNS)
    expected_indptr, expected_order = naive.csr_rows(rows.tolist(), columns.tolist(), N_ROWS)
    assert indptr.dtype == np.int64
    assert indptr.tolist() == expected_indptr
    assert order.tolist() == expected_order


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_transpose_is_the_sort_by_the_other_side(pairs):
    rows, columns = _arrays(sorted(set(pairs)))
    indptr, _ = naive.csr_rows(rows.tolist(), columns.tolist(), N_ROWS)
    values, one = np.arange(len(rows), dtype=np.float32), np.ones(1, np.float32)
    rows_t, values_t, untouched = np.empty(len(rows), np.int32), np.empty_like(values), np.zeros(1, np.float32)
    given = np.asarray(indptr, np.int64), columns
    indptr_t = csr.transpose(*given, values, N_COLUMNS, rows_t, values_t)
    expected_indptr, expected_source = naive.csr_rows(columns.tolist(), rows.tolist(), N_COLUMNS)
    assert indptr_t.tolist() == expected_indptr
    if len(rows) > 1:
        assert values_t.tolist() == expected_source
    csr.transpose(*given, one, N_COLUMNS, rows_t, untouched)
    assert untouched.tolist() == [0]
    assert rows_t.tolist() == rows[expected_source].tolist()


@settings(deadline=None, max_examples=60)
@given(pairs, st.sampled_from(["last", "sum", "mean"]), st.randoms(use_true_random=False))
def test_merge_duplicates(pairs, how, random):
    rows, columns = _arrays(pairs)
    values = np.asarray([random.randint(-8, 8) / 2 for _ in pairs], np.float64)
    times = np.asarray([random.randint(0, 3) for _ in pairs], np.int64)
    order, _ = csr.sort_pairs(rows, columns, N_ROWS, N_COLUMNS)
    first = csr.first_in_group(rows, columns, order)
    position, value = csr.merge_duplicates(order, first, values, times, ["last", "sum", "mean"].index(how))
    merged = {(int(rows[p]), int(columns[p])): (v, times[p]) for p, v in zip(position, value, strict=True)}
    assert merged == naive.merge(rows.tolist(), columns.tolist(), values.tolist(), times.tolist(), how)
    assert len(position) == len(set(pairs))


@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_rows_without_entries(n_rows):
    assert csr.count_rows(np.empty(0, np.int32), n_rows).tolist() == [0] * (n_rows + 1)
