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


def similarities(rows, side, similarity="cosine", weighting="none", shrink=0.0, k1=100.0, b=0.8, newcomers=None):
    """Similarity of every two rows of a dense matrix whose zeros are missing; rows are those of `side`.

    With newcomers, of each of these with each row; what is counted (idf, the mean length) is counted among the rows.
    """
    n = len(rows)
    if newcomers is not None:
        rows = np.concatenate([rows, newcomers])
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
    idf = np.log(n) - np.log1p(met[:n].sum(0))
    if weighting == "tf-idf":
        values = np.sqrt(values) * idf
    elif weighting == "bm25":
        length = 1 - b + b * values.sum(1) / values[:n].sum(1).mean()
        values = np.where(met, values * (k1 + 1) / (k1 * length[:, None] + values) * idf, 0)
    dots = values @ values.T
    squares = np.diag(dots)
    if similarity == "jaccard":
        below = squares[:, None] + squares[None] - dots + shrink
    elif similarity == "dot":
        below = np.ones_like(dots)
    else:
        below = np.sqrt(np.outer(squares, squares)) + shrink
    found = np.where(below > 0, dots / np.where(below > 0, below, 1), 0)
    return found if newcomers is None else found[n:, :n]


def svd_plus_plus(tables, rows, order, learning_rate, l2, mean):
    """An epoch of SVD++ as it is written in the source: every rating moves the feedback of all its user's items."""
    p, q, y, bu, bi = (np.array(t, np.float64) for t in tables)
    indptr, indices, values = map(np.asarray, rows)
    total = 0.0
    for u in order:
        mine = indices[indptr[u] : indptr[u + 1]]
        for i, r in zip(mine, values[indptr[u] : indptr[u + 1]], strict=True):
            root = np.sqrt(len(mine))
            context, old = p[u] + y[mine].sum(0) / root, q[i].copy()
            error = r - (mean + bu[u] + bi[i] + old @ context)
            total += 0.5 * error**2
            bu[u] += learning_rate * (error - l2 * bu[u])
            bi[i] += learning_rate * (error - l2 * bi[i])
            p[u] += learning_rate * (error * old - l2 * p[u])
            q[i] += learning_rate * (error * context - l2 * old)
            y[mine] += learning_rate * (error / root * old - l2 * y[mine])
    return (p, q, y, bu, bi), total


def svd_plus_plus_side_by_side(tables, rows, users, learning_rate, l2, mean):
    """The same of several users at once: a step takes the next rating of each, and each sees its own feedback alone."""
    p, q, y, bu, bi = (np.array(t, np.float64) for t in tables)
    indptr, indices, values = map(np.asarray, rows)
    seen = {u: y.copy() for u in users}
    for k in range(max(np.diff(indptr)[users])):
        before, bias_before = q.copy(), bi.copy()
        for u in users:
            mine = indices[indptr[u] : indptr[u + 1]]
            if k >= len(mine):
                continue
            i, root = mine[k], np.sqrt(len(mine))
            context = p[u] + seen[u][mine].sum(0) / root
            error = values[indptr[u] + k] - (mean + bu[u] + bias_before[i] + before[i] @ context)
            bu[u] += learning_rate * (error - l2 * bu[u])
            bi[i] += learning_rate * (error - l2 * bias_before[i])
            p[u] += learning_rate * (error * before[i] - l2 * p[u])
            q[i] += learning_rate * (error * context - l2 * before[i])
            seen[u][mine] += learning_rate * (error / root * before[i] - l2 * seen[u][mine])
    return p, q, y + sum(after - y for after in seen.values()), bu, bi


def co_rated_similarities(ratings, similarity, shrink, min_support, met=None):
    """Similarity of every two rows over the columns where both have a value; 0 for a row and itself."""
    met = ratings != 0 if met is None else met
    found = np.zeros((len(ratings), len(ratings)))
    for a in range(len(ratings)):
        for b in range(len(ratings)):
            shared = met[a] & met[b]
            x, y, n = ratings[a, shared].astype(np.float64), ratings[b, shared].astype(np.float64), shared.sum()
            if a == b or n == 0 or n < min_support:
                continue
            if similarity == "cosine":
                lengths = math.sqrt((x @ x) * (y @ y))
                found[a, b] = x @ y / lengths if lengths > 0 else 0
            else:
                found[a, b] = 1 / (1 + ((x - y) ** 2).mean())
            if shrink > 0:
                found[a, b] *= (n - 1) / (n - 1 + shrink)
    return found


def neighbor_mean(similarities, values, met, row, other, k):
    """Mean of the values of `other` at the k columns nearest to `row` that it has, weighted by similarity."""
    near = [j for j in np.argsort(-similarities[row], kind="stable") if similarities[row, j] > 0 and met[other, j]][:k]
    weights = similarities[row, near]
    return weights @ values[other, near] / weights.sum() if near else 0.0


def baseline(ratings, l2_users, l2_items, sweeps):
    """`(mean, user_bias, item_bias)` by alternating sums; zeros are missing."""
    met, r = ratings != 0, ratings.astype(np.float64)
    mean = r[met].mean()
    user_bias, item_bias = np.zeros(r.shape[0]), np.zeros(r.shape[1])
    for _ in range(sweeps):
        rest = np.where(met, r - mean - user_bias[:, None], 0).sum(0)
        item_bias = rest / np.maximum(met.sum(0) + l2_items, 1e-30)
        rest = np.where(met, r - mean - item_bias, 0).sum(1)
        user_bias = rest / np.maximum(met.sum(1) + l2_users, 1e-30)
    return mean, user_bias, item_bias


def knn_baseline(ratings, side, similarity, shrink, min_support, neighbors, l2_users=15.0, l2_items=10.0):
    """Predicted ratings of all pairs."""
    mean, user_bias, item_bias = baseline(ratings, l2_users, l2_items, 10)
    estimate = mean + user_bias[:, None] + item_bias
    met = ratings != 0
    residuals = np.where(met, ratings - estimate, 0)
    compared = residuals if similarity == "pearson-baseline" else ratings
    kind = "msd" if similarity == "msd" else "cosine"
    if side == "items":
        found = co_rated_similarities(compared.T, kind, shrink, min_support, met.T)
        means = [
            [neighbor_mean(found, residuals, met, i, u, neighbors) for i in range(met.shape[1])]
            for u in range(len(met))
        ]
    else:
        found = co_rated_similarities(compared, kind, shrink, min_support, met)
        means = [
            [neighbor_mean(found, residuals.T, met.T, u, i, neighbors) for i in range(met.shape[1])]
            for u in range(len(met))
        ]
    return estimate + np.array(means)


def graph_filter(met, rank, alpha):
    """Scores of all pairs by GF-CF, from a full singular value decomposition."""
    met = met.astype(np.float64)
    users, items = np.maximum(met.sum(1), 1), met.sum(0)
    graph = met / np.sqrt(users[:, None] * np.maximum(items, 1))
    _, values, right = np.linalg.svd(graph)
    vectors = right[:rank][values[:rank] > 1e-9].T
    roots = np.sqrt(np.maximum(items, 1))
    return met @ graph.T @ graph + alpha * (met / roots) @ vectors @ vectors.T * np.sqrt(items)


def ranking_row(items, bias, met, others, counts, l2, logistic=None, softmax=None):
    """The vector of one user at the minimum of a ranking loss, by scipy: `others [n_met, m]` count `counts` each.

    `logistic` None is `bpr`; else `(negatives, whether the user has a bias)`, and the vector's last entry is the bias.
    `softmax` is the number of its negatives.
    """
    from scipy.optimize import minimize

    items, bias = np.asarray(items, np.float64), np.asarray(bias, np.float64)
    if logistic is None:
        directions = (items[met][:, None] - items[others]).reshape(-1, items.shape[1])
        offsets, weights = (bias[met][:, None] - bias[others]).ravel(), counts.ravel()
    else:
        negatives, has_bias = logistic
        items = np.concatenate([items, np.full((len(items), 1), float(has_bias))], axis=1)
        directions = np.concatenate([items[met], -items[others.ravel()]])
        offsets = np.concatenate([bias[met], -bias[others.ravel()]])
        weights = np.concatenate([np.ones(len(met)), negatives * counts.ravel()])

    def loss(x):
        s = directions @ x + offsets
        if softmax is not None:
            above = np.exp(-s.reshape(others.shape)) * counts * softmax
            whole = 1 + above.sum(axis=1, keepdims=True)
            penalty = l2 * len(met)
            slope = -(above / whole).ravel() @ directions + penalty * x
            return np.log(whole).sum() + penalty / 2 * x @ x, slope
        slope = -weights / (1 + np.exp(s))
        penalty = l2 * weights.sum()
        return (weights * np.logaddexp(0, -s)).sum() + penalty / 2 * x @ x, slope @ directions + penalty * x

    return minimize(
        loss, np.zeros(directions.shape[1]), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9}
    ).x


def imputed_ratings(users, items, values, shape, kind, missing_users, missing_items):
    """The rating of each missing cell, mean by mean."""
    known = np.full(shape, np.nan)
    known[users, items] = values
    overall = np.nanmean(known)

    def mean(row):
        row = row[~np.isnan(row)]
        return row.mean() if len(row) else overall

    if kind == "global-mean":
        return np.full(len(missing_users), overall)
    of_users, of_items = [mean(row) for row in known], [mean(column) for column in known.T]
    if kind != "regression":
        return np.array(
            [
                of_users[u] if kind == "user-mean" else of_items[i]
                for u, i in zip(missing_users, missing_items, strict=True)
            ]
        )
    rows = []
    for u, i in zip(users, items, strict=True):
        rest = known.copy()
        rest[u, i] = np.nan
        rows.append([1.0, mean(rest[u]), mean(rest[:, i])])
    a = np.array(rows)
    weights = np.linalg.solve(a.T @ a, a.T @ np.asarray(values, np.float64))
    return np.array(
        [weights @ [1.0, of_users[u], of_items[i]] for u, i in zip(missing_users, missing_items, strict=True)]
    )


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


def dense(x, layers, relu_end, slope=None):
    """Layers with a relu between them, and gradients in x and in all weights of their products with `slope`."""
    rows, inner = [np.asarray(x, np.float64)], []
    layers = [(np.asarray(w, np.float64), np.asarray(b, np.float64)) for w, b in layers]
    for number, (w, b) in enumerate(layers):
        inner.append(rows[-1] @ w + b)
        keeps = number == len(layers) - 1 and not relu_end
        rows.append(inner[-1] if keeps else np.maximum(inner[-1], 0))
    back, found = np.ones_like(rows[-1]) if slope is None else np.asarray(slope, np.float64), []
    for number in reversed(range(len(layers))):
        if number < len(layers) - 1 or relu_end:
            back = back * (inner[number] > 0)
        found.insert(0, (rows[number].T @ back, back.sum(axis=0)))
        back = back @ layers[number][0].T
    return rows[-1], back, found


def cross(x, layers, slope=None):
    """`x' = x0 * (x W + b) + x`, layer by layer, and gradients as of `dense`."""
    rows, inner = [np.asarray(x, np.float64)], []
    layers = [(np.asarray(w, np.float64), np.asarray(b, np.float64)) for w, b in layers]
    for w, b in layers:
        inner.append(rows[-1] @ w + b)
        rows.append(rows[0] * inner[-1] + rows[-1])
    back, found = np.ones_like(rows[-1]) if slope is None else np.asarray(slope, np.float64), []
    of_start = np.zeros_like(rows[0])
    for number in reversed(range(len(layers))):
        of_start += back * inner[number]
        found.insert(0, (rows[number].T @ (back * rows[0]), (back * rows[0]).sum(axis=0)))
        back = back + (back * rows[0]) @ layers[number][0].T
    return rows[-1], of_start + back, found


def deep_cross(x, crosses, layers, ends, slope):
    """Products of the two above with `ends`, added up; and gradients in x, all layers and the ends."""
    u, v, slope = (np.asarray(a, np.float64)[:, None] for a in (*ends, slope))
    crossed, of_x, of_crosses = cross(x, crosses, slope * u.T)
    deep, more, of_layers = dense(x, layers, True, slope * v.T)
    of_ends = (crossed.T @ slope)[:, 0], (deep.T @ slope)[:, 0]
    return (crossed @ u + deep @ v)[:, 0], of_x + more, [*of_crosses, *of_layers, of_ends]


def pair_products(vectors, slope=None):
    """Products of all vectors with those before, and the gradient of their products with `slope`."""
    vectors = np.asarray(vectors, np.float64)
    n = vectors.shape[1]
    pairs = [(i, j) for i in range(n) for j in range(i)]
    products, gradient = np.zeros((len(vectors), len(pairs))), np.zeros_like(vectors)
    for number, (i, j) in enumerate(pairs):
        products[:, number] = (vectors[:, i] * vectors[:, j]).sum(axis=-1)
        if slope is not None:
            gradient[:, i] += slope[:, number, None] * vectors[:, j]
            gradient[:, j] += slope[:, number, None] * vectors[:, i]
    return products, gradient


def bag(table, indptr, indices, values, mode="sum"):
    """Sums or means by weight of the rows of each bag."""
    table, values = table.astype(np.float64), np.broadcast_to(values.astype(np.float64), indices.shape)
    pooled = np.zeros((len(indptr) - 1, table.shape[1]))
    for place in range(len(pooled)):
        mine = [k for k in range(indptr[place], indptr[place + 1]) if indices[k] >= 0]
        for k in mine:
            pooled[place] += values[k] * (table[indices[k]] if indices[k] < len(table) else np.nan)
        if mode == "mean" and mine:
            pooled[place] /= values[mine].sum()
    return pooled


def update_rows(table, slots, ids, gradients, optimizer, learning_rate):
    """One step of the optimizer of each row that is named, in place."""
    for row in np.unique(ids[(ids >= 0) & (ids < len(table))]):
        g = gradients[ids == row].sum(0)
        if optimizer == "sgd":
            table[row] -= learning_rate * g
        elif optimizer == "adam":
            count, mean, squares = slots
            count[row] += 1
            mean[row] = 0.9 * mean[row] + 0.1 * g
            squares[row] = 0.999 * squares[row] + 0.001 * g**2
            root = np.sqrt(squares[row] / (1 - 0.999 ** count[row]))
            table[row] -= learning_rate * mean[row] / (1 - 0.9 ** count[row]) / (root + 1e-8)
        else:
            slots[0][row] += g**2 if optimizer == "adagrad" else np.mean(g**2)
            table[row] -= learning_rate * g / np.sqrt(slots[0][row] + 1e-7)


def attention(q, k, v, segments, causal=True, activation="softmax", position_bias=None, time_bias=None, times=None):
    """Place by place, `[length, heads, width]`."""
    length, heads, width = q.shape
    out = np.zeros((length, heads, v.shape[-1]))
    for i in range(length):
        others = [j for j in range(length) if segments[j] == segments[i] >= 0 and (j <= i or not causal)]
        for h in range(heads):
            scores = []
            for j in others:
                score = np.float64(q[i, h]) @ np.float64(k[j, h]) / math.sqrt(width)
                if position_bias is not None:
                    far = position_bias.shape[1] // 2
                    score += position_bias[h, min(max(i - j, -far), far) + far]
                if time_bias is not None:
                    gap = max(abs(int(times[i]) - int(times[j])), 1)
                    score += time_bias[h, min(int(math.log10(gap) / 0.301), time_bias.shape[1] - 1)]
                scores.append(score)
            if not others:
                continue
            scores = np.array(scores)
            if activation == "softmax":
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
            else:
                weights = scores / (1 + np.exp(-scores)) / length
            out[i, h] = weights @ np.float64(v[others, h])
    return out


def cross_entropy(hidden, table, bias, labels, weights):
    """The sum, and its gradients in all but the labels."""
    hidden, table = np.float64(hidden), np.float64(table)
    logits = hidden @ table.T + bias
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    total = chances.sum(axis=1, keepdims=True)
    counts = labels >= 0
    own = np.maximum(labels, 0)
    losses = np.log(total[:, 0]) + logits.max(axis=1) - logits[np.arange(len(labels)), own]
    slopes = chances / total
    slopes[np.arange(len(labels)), own] -= 1
    slopes *= (weights * counts)[:, None]
    return (losses * weights * counts).sum(), slopes @ table, slopes.T @ hidden, slopes.sum(axis=0), losses * counts
