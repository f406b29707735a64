"""The shapes that every kernel is tried on, by the conformance tests and by bench/."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


class LeastSquaresCase(NamedTuple):
    """One sparse matrix and its systems; `lengths` are the entries of its rows."""

    name: str
    lengths: tuple[int, ...]
    n_columns: int
    rank: int
    constant: bool = False  # one weight and target for all entries


class TopKCase(NamedTuple):
    """Queries, items and what is left out of the answers."""

    name: str
    batch: int
    n_items: int
    width: int
    k: int
    longest_seen: int = 0


class SparseTopKCase(NamedTuple):
    """Sparse rows over `n_inner`, and a table of as many rows that is sparse or dense."""

    name: str
    batch: int
    n_inner: int
    n_columns: int
    k: int
    density: float
    dense: bool = False


class RatingsCase(NamedTuple):
    """Ratings, some shared by two rows, some not."""

    name: str
    n_rows: int
    n_columns: int
    k: int
    density: float


class EmbeddingCase(NamedTuple):
    """Bags of rows of a table; `lengths` are their entries."""

    name: str
    lengths: tuple[int, ...]
    n_rows: int
    width: int
    constant: bool = False  # one weight for all entries


class DenseCase(NamedTuple):
    """Rows, and the widths of a network from the input on; or the number of its cross layers, which have one width."""

    name: str
    batch: int
    widths: tuple[int, ...]


class PairsCase(NamedTuple):
    """Examples of `n` vectors each."""

    name: str
    batch: int
    n: int
    width: int


class AttentionCase(NamedTuple):
    """Rows of places, each of which has queries and keys of one width and values of another."""

    name: str
    batch: int
    length: int
    heads: int
    width: int
    depth: int


class CrossEntropyCase(NamedTuple):
    """Rows against a catalogue."""

    name: str
    rows: int
    items: int
    width: int


LEAST_SQUARES = (
    LeastSquaresCase("no entries", (0, 0, 0), 5, 3),
    LeastSquaresCase("one row", (7,), 9, 4, constant=True),
    LeastSquaresCase("odd shapes", (3, 0, 1, 11, 5), 13, 7),
    LeastSquaresCase("rank above both sides", (2, 3), 3, 16, constant=True),
    LeastSquaresCase("heavy tail", (2500, 1, 0, 40, 3, 700), 300, 16),
    LeastSquaresCase("a width of two tiles", (9, 30, 64, 65, 100), 150, 24),
)

TOP_K = (
    TopKCase("one query", 1, 33, 5, 4, 3),
    TopKCase("one item", 3, 1, 2, 1),
    TopKCase("k above the catalogue", 5, 7, 3, 12, 2),
    TopKCase("a few queries, several blocks", 7, 2600, 9, 30, 40),
    TopKCase("odd shapes", 67, 1031, 9, 10, 50),
    TopKCase("all seen", 4, 20, 4, 5, 20),
)


SPARSE_TOP_K = (
    SparseTopKCase("one row", 1, 4, 9, 3, 0.5),
    SparseTopKCase("nothing at all", 3, 4, 5, 2, 0.0),
    SparseTopKCase("odd shapes", 37, 70, 131, 11, 0.2),
    SparseTopKCase("k above the columns", 5, 6, 7, 12, 0.6),
    SparseTopKCase("a dense table", 21, 33, 130, 9, 0.3, dense=True),
)


RATINGS = (
    RatingsCase("one row", 1, 5, 2, 0.5),
    RatingsCase("nothing at all", 3, 4, 2, 0.0),
    RatingsCase("odd shapes", 37, 71, 5, 0.3),
    RatingsCase("k above the rows", 6, 9, 12, 0.7),
    RatingsCase("long rows", 11, 700, 3, 0.8),
)


EMBEDDINGS = (
    EmbeddingCase("no entries", (0, 0, 0), 5, 3),
    EmbeddingCase("one row", (1,), 1, 4, constant=True),
    EmbeddingCase("odd shapes", (3, 0, 1, 11, 5), 13, 7),
    EmbeddingCase("heavy tail", (900, 1, 0, 40, 2000, 3) + (1,) * 90, 300, 24, constant=True),
)


DENSE = (
    DenseCase("no rows", 0, (5, 3, 4)),
    DenseCase("one number", 1, (1, 1)),
    DenseCase("odd shapes", 67, (21, 37, 3)),
    DenseCase("several groups of whole tiles", 700, (16, 48, 32)),
    DenseCase("one column", 130, (64, 1)),
    DenseCase("wide and narrow", 90, (8, 200, 20, 1)),
)
CROSS = (
    DenseCase("no rows", 0, (5,) * 3),
    DenseCase("one number", 1, (1,) * 2),
    DenseCase("odd shapes", 67, (21,) * 4),
    DenseCase("several groups of whole tiles", 700, (48,) * 3),
)

DEEP_CROSS = (  # two cross layers, then those of the network beside them
    DenseCase("no rows", 0, (5, 5, 5, 3)),
    DenseCase("one number", 1, (1, 1, 1, 1)),
    DenseCase("odd shapes", 67, (21, 21, 21, 37, 3)),
    DenseCase("several groups of whole tiles", 700, (48, 48, 48, 32, 16)),
    DenseCase("a network that grows", 130, (8, 8, 8, 100, 1)),
)

PAIRS = (
    PairsCase("no examples", 0, 3, 4),
    PairsCase("one vector", 2, 1, 4),
    PairsCase("odd shapes", 67, 7, 5),
    PairsCase("many vectors", 3, 27, 16),
)

ATTENTION = (
    AttentionCase("one place", 1, 1, 1, 4, 4),
    AttentionCase("two heads", 2, 9, 2, 8, 8),
    AttentionCase("odd", 3, 13, 3, 5, 7),
    AttentionCase("several blocks and panels", 2, 75, 1, 16, 20),
)

CROSS_ENTROPY = (
    CrossEntropyCase("one item", 1, 1, 1),
    CrossEntropyCase("some", 40, 23, 8),
    CrossEntropyCase("odd", 37, 101, 13),
    CrossEntropyCase("several blocks and groups", 700, 300, 16),
)


def dense_arguments(case: DenseCase, seed: int = 0) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Rows and the weights and bias of each layer, float32."""
    rng = np.random.default_rng(seed)
    layers = [
        ((rng.normal(size=(k, n)) / np.sqrt(k)).astype(np.float32), rng.normal(size=n).astype(np.float32))
        for k, n in itertools.pairwise(case.widths)
    ]
    return rng.normal(size=(case.batch, case.widths[0])).astype(np.float32), layers


def pairs_arguments(case: PairsCase, seed: int = 0) -> np.ndarray:
    """Vectors of a case, float32."""
    return np.random.default_rng(seed).normal(size=case[1:]).astype(np.float32)


def least_squares_arguments(case: LeastSquaresCase, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a case, float32, with well-conditioned systems."""
    rng = np.random.default_rng(seed)
    nnz = sum(case.lengths)
    size = 1 if case.constant else nnz
    table = rng.normal(size=(case.n_columns, case.rank)).astype(np.float32)
    return {
        "indptr": np.concatenate([[0], np.cumsum(case.lengths)]).astype(np.int32),
        "indices": rng.integers(0, case.n_columns, nnz).astype(np.int32),
        "weights": rng.uniform(0.5, 2.0, size).astype(np.float32),
        "targets": rng.normal(size=size).astype(np.float32),
        "table": table,
        "gram": (0.1 * table.T @ table).astype(np.float32),
        "l2": rng.uniform(0.5, 1.5, len(case.lengths)).astype(np.float32),
    }


def top_k_arguments(case: TopKCase, seed: int = 0) -> dict[str, np.ndarray | int]:
    """Arrays of a case; scores are rounded to tie often."""
    rng = np.random.default_rng(seed)
    seen = [
        np.sort(rng.choice(case.n_items, min(rng.integers(case.longest_seen + 1), case.n_items), replace=False))
        for _ in range(case.batch)
    ]
    if case.name == "all seen":
        seen = [np.arange(case.n_items)] * case.batch
    return {
        "queries": rng.integers(-2, 3, (case.batch, case.width)).astype(np.float32),
        "items": rng.integers(-2, 3, (case.n_items, case.width)).astype(np.float32),
        "k": case.k,
        "seen_indptr": np.concatenate([[0], np.cumsum([len(s) for s in seen])]).astype(np.int32),
        "seen_indices": np.concatenate(seen).astype(np.int32),
        "seen_rows": np.arange(case.batch, dtype=np.int32),
    }


def sparse_top_k_arguments(case: SparseTopKCase, seed: int = 0) -> dict[str, np.ndarray]:
    """`queries`, `table` and `seen`, all dense, of small whole numbers whose sums are exact and tie often."""
    rng = np.random.default_rng(seed)

    def sparse(*shape):
        return np.where(rng.random(shape) < case.density, rng.integers(-2, 4, shape), 0).astype(np.float32)

    return {
        "queries": sparse(case.batch + 2, case.n_inner),  # of which not all are asked
        "rows": rng.permutation(case.batch + 2)[: case.batch].astype(np.int32),
        "table": sparse(case.n_inner, case.n_columns),
        "seen": rng.random((case.batch, case.n_columns)) < 0.1,
        "exclude": rng.integers(-1, case.n_columns, (case.batch, 3)).astype(np.int32),
        "among": rng.integers(-1, case.n_columns, (case.batch, case.n_columns)).astype(np.int32),
        "allow": rng.random(case.n_columns) < 0.8,
        "query_sizes": rng.uniform(60, 90, case.batch + 2).astype(np.float32),
        "column_sizes": rng.uniform(60, 90, case.n_columns).astype(np.float32),
    }


def ratings_of(case: RatingsCase, seed: int = 0) -> np.ndarray:
    """A dense matrix of ratings 1 to 5, 0 where there is none."""
    rng = np.random.default_rng(seed)
    shape = case.n_rows, case.n_columns
    return np.where(rng.random(shape) < case.density, rng.integers(1, 6, shape), 0).astype(np.float32)


def embedding_arguments(case: EmbeddingCase, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a case: few rows have most of the entries, some entries are none, and three are in no bag."""
    rng = np.random.default_rng(seed)
    n = sum(case.lengths) + 3
    indices = (case.n_rows * rng.random(n) ** 3).astype(np.int32)
    return {
        "table": rng.normal(size=(case.n_rows, case.width)).astype(np.float32),
        "indptr": np.concatenate([[0], np.cumsum(case.lengths)]).astype(np.int32),
        "indices": np.where(rng.random(n) < 0.1, -1, indices).astype(np.int32),
        "values": rng.uniform(0.5, 2.0, 1 if case.constant else n).astype(np.float32),
    }
