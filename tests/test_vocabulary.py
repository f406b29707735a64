"""Outside ids and dense indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affinax.engine.data import InteractionError, Vocabulary

FILMS = Vocabulary(np.array([30, 10, 20]), titles=np.array(["Fargo", "Alien", "Alien"]))
ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True, max_size=12),
    st.lists(st.text(max_size=6).filter(lambda t: not t.endswith("\0")), min_size=1, unique=True, max_size=12),
)


@settings(deadline=None, max_examples=60)
@given(ids)
def test_ids_come_back_as_they_went_in(ids):
    vocabulary = Vocabulary.fit(ids)
    indices = vocabulary.indices(ids)
    assert sorted(indices.tolist()) == list(range(len(ids)))
    assert vocabulary.outside(indices).tolist() == ids
    assert all(i in vocabulary for i in ids)


def test_given_order_is_kept_and_fit_sorts():
    assert FILMS.indices([10, 20, 30]).tolist() == [1, 2, 0]
    assert Vocabulary.fit(["b", "a", "b"]).ids.tolist() == ["a", "b"]
    assert len(FILMS) == 3


def test_unknown_ids_are_reported_or_marked():
    assert FILMS.indices([10, 99], unknown="mark").tolist() == [1, -1]
    with pytest.raises(InteractionError, match="1 of 2 ids are unknown; the first is 99 at position 1"):
        FILMS.indices([10, 99])
    with pytest.raises(ValueError, match="unknown='skip'"):
        FILMS.indices([], unknown="skip")
    assert 99 not in FILMS
    assert "10" not in FILMS


def test_text_that_spells_a_number_is_another_id():
    assert Vocabulary.fit(["007", "7"]).ids.tolist() == ["007", "7"]
    with pytest.raises(InteractionError, match=r"ids here are whole numbers, such as .* got text"):
        FILMS.indices(["10"])
    with pytest.raises(InteractionError, match="ids here are text"):
        Vocabulary.fit(["10"]).indices([10])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, "a"], "mix text"),
        (np.array([1, "a"], object), "mix text"),
        ([1.0, 2.0], "whole numbers or text; got float64"),
        ([True], "whole numbers or text; got bool"),
        ([None], "whole numbers or text; got object"),
        ([2**64], "whole numbers or text; got object"),
        ([2**63], "does not fit int64"),
        (["a\0"], "NUL"),
        (np.zeros((2, 2), int), "one-dimensional"),
    ],
)
def test_what_is_no_id(ids, message):
    with pytest.raises(InteractionError, match=message):
        Vocabulary.fit(ids)


def test_repeated_ids_and_wrong_titles():
    with pytest.raises(InteractionError, match="occurs more than once"):
        Vocabulary(np.array([1, 1]))
    with pytest.raises(InteractionError, match="titles"):
        Vocabulary(np.array([1, 2]), titles=np.array(["one"]))


def test_resolve_takes_ids_then_titles():
    assert FILMS.resolve([10, "Fargo"]).tolist() == [1, 0]
    with pytest.raises(InteractionError, match="stands for 2 ids"):
        FILMS.resolve(["Alien"])
    with pytest.raises(InteractionError, match="did you mean 'Fargo'"):
        FILMS.resolve(["Fargoo"])
    with pytest.raises(InteractionError, match="neither an id nor a title"):
        FILMS.resolve([99])


def test_names_are_titles_or_ids():
    assert FILMS.names([[0, 1]]).tolist() == [["Fargo", "Alien"]]
    assert Vocabulary.fit([5]).names([0]).tolist() == [5]
    assert FILMS.with_titles({10: "Brazil"}).titles.tolist() == ["30", "Brazil", "20"]


@pytest.mark.parametrize(("indices", "message"), [([-1], "index -1"), ([3], "index 3"), ([0.5], "whole numbers")])
def test_indices_outside_the_vocabulary(indices, message):
    with pytest.raises(InteractionError, match=message):
        FILMS.outside(indices)


@pytest.mark.parametrize("ids", [np.array([1, 2]), np.array(["a", "b"])])
def test_immutable_and_apart_from_the_array_given(ids):
    vocabulary = Vocabulary(ids)
    before = ids[0].item()
    ids[0] = ids[1]
    assert vocabulary.ids[0] == before
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.ids[0] = ids[1]
