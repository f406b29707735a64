"""What the values of interactions count before neighbours are looked for: one side of a sparse matrix at a time."""

from __future__ import annotations

import numpy as np

from ...kernels import csr
from ..data.interactions import Interactions
from ..errors import InteractionError

SIMILARITIES = ("cosine", "adjusted-cosine", "pearson", "jaccard", "dot")
WEIGHTINGS = ("none", "tf-idf", "bm25")


def weighted_values(
    x: Interactions, side: str, similarity: str, weighting: str, k1: float, b: float, *, among: Interactions
) -> np.ndarray | None:
    """Values `[nnz]` in float64 to be multiplied when rows of one side are compared, or None where all are 1.

    With f the value, and the rows of `side` compared over their entries on the other side:

    - "adjusted-cosine" takes each user's mean off, "pearson" the mean of each compared row;
    - "jaccard" takes 1 for every interaction;
    - "tf-idf": `sqrt(f) idf`, `idf = ln(rows) - ln(1 + entries of the other side's)`;
    - "bm25": `idf f (k1 + 1) / (f + k1 (1 - b + b total(row) / mean total))`;

    rows, entries of the other side's and the mean total are counted in `among`: x itself, or what its rows come to.

    Raises:
        InteractionError: Values below 0, with a weighting.

    Source: Robertson, Walker et al. 1994, "Okapi at TREC-3"; the forms are those of the `implicit` library.
    """
    if similarity == "jaccard" or (x.values is None and weighting == "none" and similarity in ("cosine", "dot")):
        return None
    values = np.ones(x.nnz) if x.values is None else x.values.astype(np.float64)
    row, n_rows = rows_of(x, side)
    other = x.items if side == "users" else x.users
    if similarity == "adjusted-cosine":
        values = values - _means(x.users, x.n_users, values)[x.users]
    elif similarity == "pearson":
        values = values - _means(row, n_rows, values)[row]
    if weighting == "none":
        return values
    if values.min(initial=0) < 0:
        first = int(np.argmax(values < 0))
        raise InteractionError(
            f"{weighting} weighs counts: value {values[first]:g} of user {x.users[first]}, item {x.items[first]} must "
            f'be at least 0 ({(values < 0).sum():,} such). weighting="none" takes any value'
        )
    n_among, others = (among.n_users, among.items) if side == "users" else (among.n_items, among.users)
    idf = np.log(n_among) - np.log1p(np.bincount(others, minlength=x.n_items if side == "users" else x.n_users))
    if weighting == "tf-idf":
        return np.sqrt(values) * idf[other]
    total = among.nnz if among.values is None else among.values.sum(dtype=np.float64)
    mean = total / n_among or 1.0  # of nothing but zeros, which count nothing
    below = k1 * (1 - b + b * np.bincount(row, values, n_rows) / mean)[row] + values
    return values * (k1 + 1) / np.where(below > 0, below, 1.0) * idf[other]


def row_sizes(x: Interactions, side: str, similarity: str, values: np.ndarray | None) -> np.ndarray:
    """What a row's products are held against: its length, or for "jaccard" its number of entries; 1 for "dot"."""
    if similarity == "dot":
        return np.ones(rows_of(x, side)[1])
    if values is None:
        squares = np.diff(x.indptr if side == "users" else csr.count_rows(x.items, x.n_items))
    else:
        row, n_rows = rows_of(x, side)
        squares = np.bincount(row, values * values, n_rows)
    return squares if similarity == "jaccard" else np.sqrt(squares)


def rows_of(x: Interactions, side: str) -> tuple[np.ndarray, int]:
    """Row of each interaction `[nnz]` int32, and how many rows there are, where those of this side are rows."""
    return (x.users, x.n_users) if side == "users" else (x.items, x.n_items)


def _means(row: np.ndarray, n_rows: int, values: np.ndarray) -> np.ndarray:
    counts = np.bincount(row, minlength=n_rows)
    return np.bincount(row, values, n_rows) / np.maximum(counts, 1)
