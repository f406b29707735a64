"""Slow and plain: what the fast code should compute, in float64."""

from __future__ import annotations

import math

import numpy as np

# Metrics, row by row, straight from their definitions.


def _truth(relevant):
    return {item for item in relevant if item >= 0}


def recall_at_k(ids, relevant, k):
    truth = _truth(relevant)
    return sum(item in truth for item in ids[:k]) / len(truth) if truth else math.nan


def precision_at_k(ids, relevant, k):
    truth = _truth(relevant)
    return sum(item in truth for item in ids[:k]) / k if truth else math.nan


def hit_rate_at_k(ids, relevant, k):
    truth = _truth(relevant)
    return float(any(item in truth for item in ids[:k])) if truth else math.nan


def ndcg_at_k(ids, relevant, k):
    truth = _truth(relevant)
    if not truth:
        return math.nan
    gain = sum(1 / math.log2(rank + 1) for rank, item in enumerate(ids[:k], start=1) if item in truth)
    return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(truth)) + 1))


def map_at_k(ids, relevant, k):
    truth = _truth(relevant)
    if not truth:
        return math.nan
    found = [rank for rank, item in enumerate(ids[:k], start=1) if item in truth]
    return sum(nth / rank for nth, rank in enumerate(found, start=1)) / len(truth)


def mrr_at_k(ids, relevant, k):
    truth = _truth(relevant)
    if not truth:
        return math.nan
    return next((1 / rank for rank, item in enumerate(ids[:k], start=1) if item in truth), 0.0)


def rmse(predicted, actual):
    return math.sqrt(sum((float(p) - float(a)) ** 2 for p, a in zip(predicted, actual, strict=True)) / len(actual))


def mae(predicted, actual):
    return sum(abs(float(p) - float(a)) for p, a in zip(predicted, actual, strict=True)) / len(actual)


# Sparse rows, by Python's own sort and dictionaries.


def csr_rows(rows, columns, n_rows):
    """Row pointer, and the input positions sorted by row, column and position."""
    order = sorted(range(len(rows)), key=lambda k: (rows[k], columns[k], k))
    return [sum(row < r for row in rows) for r in range(n_rows + 1)], order


def merge(rows, columns, values, times, how):
    """`{(row, column): (value, time)}` of repeated pairs: the latest, the sum or the mean; always the latest time."""
    groups = {}
    for row, column, value, time in zip(rows, columns, values, times, strict=True):
        groups.setdefault((row, column), []).append((value, time))
    merged = {}
    for pair, group in groups.items():
        latest = max(time for _, time in group)
        last = [value for value, time in group if time == latest][-1]
        total = sum(value for value, _ in group)
        merged[pair] = ({"last": last, "sum": total, "mean": total / len(group)}[how], latest)
    return merged


def least_squares(indptr, indices, weights, targets, table, gram, l2, rhs=None):
    """Rows of `kernels.least_squares.solve`, one `numpy.linalg.solve` each."""
    table = np.asarray(table, np.float64)
    n_rows, nnz = len(indptr) - 1, len(indices)
    weights, targets = (np.broadcast_to(np.asarray(v, np.float64), nnz) for v in (weights, targets))
    l2 = np.broadcast_to(np.asarray(l2, np.float64), n_rows)
    x = np.zeros((n_rows, table.shape[1]))
    loss = np.zeros(n_rows)
    for row in range(n_rows):
        entries = slice(indptr[row], indptr[row + 1])
        y = table[indices[entries]]
        if len(y) == 0:
            continue
        a = np.asarray(gram, np.float64) + (y * weights[entries, None]).T @ y + l2[row] * np.eye(table.shape[1])
        b = y.T @ targets[entries] + (0 if rhs is None else np.asarray(rhs, np.float64)[row])
        x[row] = np.linalg.solve(a, b)
        loss[row] = x[row] @ a @ x[row] - 2 * x[row] @ b
    return x, loss


def top_k(queries, items, k, **masks):
    """The k best products of each query, all scores sorted at once."""
    return best(np.asarray(queries, np.float64) @ np.asarray(items, np.float64).T, k, **masks)


def sparse_top_k(queries, table, k, similarity="product", sizes=None, shrink=0.0, positive=True, **masks):
    """The k best columns of each row of `queries @ table`, both given dense; `sizes` are those of rows and columns."""
    scores = np.asarray(queries, np.float64) @ np.asarray(table, np.float64)
    if similarity != "product":
        rows, columns = np.asarray(sizes[0], np.float64)[:, None], np.asarray(sizes[1], np.float64)[None]
        below = rows * columns if similarity == "shrunk" else rows + columns - scores
        scores = np.where(below + shrink > 0, scores / np.where(below + shrink > 0, below + shrink, 1), scores)
    return best(np.where(scores > 0, scores, -np.inf) if positive else scores, k, **masks)


def best(scores, k, seen=None, exclude=None, allow=None, among=None):
    """The k best of each row of scores, equal ones by lower id; -1 and -inf where fewer remain."""
    scores = scores.copy()
    for row in range(len(scores)):
        if seen is not None:
            scores[row, seen[row]] = -np.inf
        if exclude is not None:
            scores[row, [item for item in exclude[row] if item >= 0]] = -np.inf
        if among is not None:
            scores[row, list(set(range(scores.shape[1])) - {int(item) for item in among[row]})] = -np.inf
    if allow is not None:
        scores[:, ~np.asarray(allow)] = -np.inf
    scores[np.isnan(scores)] = -np.inf
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, ids, axis=1)
    padding = [(0, 0), (0, k - ids.shape[1])]
    ids = np.pad(np.where(found == -np.inf, -1, ids), padding, constant_values=-1)
    return ids, np.pad(found, padding, constant_values=-np.inf)


def implicit_objective(users, items, x, l2, l2_exponent, a0):
    """The whole iALS objective over every pair, with w = b = 1 (matrices small enough to hold)."""
    users, items, r = np.asarray(users, np.float64), np.asarray(items, np.float64), np.asarray(x, np.float64)
    s = users @ items.T
    n_users, n_items = r.shape
    l_users = l2 * ((r > 0).sum(1) + a0 * n_items) ** l2_exponent
    l_items = l2 * ((r > 0).sum(0) + a0 * n_users) ** l2_exponent
    observed = ((s - 1) ** 2)[r > 0].sum() + a0 * (s**2).sum()
    return observed + l_users @ (users**2).sum(1) + l_items @ (items**2).sum(1)


SIMILARITIES = ("cosine", "adjusted-cosine", "pearson", "jaccard", "dot")


def similarities(rows, side, similarity="cosine", weighting="none", shrink=0.0, k1=100.0, b=0.8):
    """Similarity of every two rows of a dense matrix whose zeros are missing; rows are those of `side`."""
    met = rows != 0
    values = rows.astype(np.float64)

    def means(axis):
        return values.sum(axis, keepdims=True) / np.maximum(met.sum(axis, keepdims=True), 1)

    if similarity == "jaccard":
        values = met.astype(np.float64)
    elif similarity == "pearson" or (similarity == "adjusted-cosine" and side == "users"):
        values = np.where(met, values - means(1), 0)
    elif similarity == "adjusted-cosine":
        values = np.where(met, values - means(0), 0)
    idf = np.log(len(rows)) - np.log1p(met.sum(0))
    if weighting == "tf-idf":
        values = np.sqrt(values) * idf
    elif weighting == "bm25":
        length = 1 - b + b * values.sum(1) / values.sum(1).mean()
        values = np.where(met, values * (k1 + 1) / (k1 * length[:, None] + values) * idf, 0)
    dots = values @ values.T
    squares = np.diag(dots)
    if similarity == "jaccard":
        below = squares[:, None] + squares[None] - dots + shrink
    elif similarity == "dot":
        below = np.ones_like(dots)
    else:
        below = np.sqrt(np.outer(squares, squares)) + shrink
    return np.where(below > 0, dots / np.where(below > 0, below, 1), 0)


def ridge(x, y, l2, intercept):
    """Weights, intercept and their standard errors, from the normal equations with a column of ones."""
    n, d = x.shape
    design = np.hstack([x, np.ones((n, 1))]) if intercept else x
    penalty = np.diag([l2] * d + [0.0] * int(intercept))
    inverse = np.linalg.inv(design.T @ design + penalty)
    theta = inverse @ design.T @ y
    hat = inverse @ design.T @ design
    noise = np.sum((y - design @ theta) ** 2) / (n - np.trace(hat))
    return _linear(theta, np.sqrt(np.diag(hat @ inverse) * noise), design @ theta, d)


def logistic(x, y, l2, intercept):
    """The same of a logistic regression, by fifty of Newton's steps."""
    n, d = x.shape
    design = np.hstack([x, np.ones((n, 1))]) if intercept else x
    penalty = np.diag([l2] * d + [0.0] * int(intercept))
    theta = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ theta))
        information = (design * (p * (1 - p))[:, None]).T @ design
        theta = theta - np.linalg.solve(information + penalty, design.T @ (p - y) + penalty @ theta)
    inverse = np.linalg.inv(information + penalty)
    return _linear(theta, np.sqrt(np.diag(inverse @ information @ inverse)), design @ theta, d)


def _linear(theta, errors, scores, d):
    return {
        "weights": theta[:d],
        "intercept": theta[d] if len(theta) > d else 0.0,
        "errors": errors[:d],
        "intercept_error": errors[d] if len(theta) > d else 0.0,
        "scores": scores,
    }
