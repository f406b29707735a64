"""Regularized weighted least squares, one small system for each row of a sparse matrix.

For every row `u`, with `k` running over its stored entries and `y_k` the table row each points to:

    (gram + sum_k w_k y_k y_k^T + l2_u I) x_u = sum_k b_k y_k + rhs_u

This one kernel serves explicit and implicit ALS, iALS++ and fold-in: Hu, Koren, Volinsky 2008 (eq. 4);
Rendle et al. 2021, "Revisiting the Performance of iALS" (eq. 5); Rendle et al. 2021, "iALS++".
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from . import least_squares_numba
from .least_squares_blocks import JITTER, JITTER_RETRIES
from .op import Implementation, Op, dispatch

Solver = Literal["auto", "cholesky", "cg", "subspace"]

_PACK = 16  # entries in one packed row
_PACKED_ROWS = 256  # packed rows in one step of the loop over a block
_BLOCK_ELEMENTS = 1 << 22  # float32 entries of the normal matrices held at once


class Solution(NamedTuple):
    """What `solve` returns.

    Attributes:
        x: `[n_rows, rank]` float32; NaN in a row that has no finite solution, 0 in one without entries.
        loss: `[n_rows]`, the row's quadratic form `x^T A x - 2 x.b` at x.
        jittered: `[n_rows]` int32, how often the diagonal was raised before the matrix factorized.
    """

    x: Float[Array, "n_rows rank"]
    loss: Float[Array, " n_rows"]
    jittered: Int32[Array, " n_rows"]


def solve(
    indptr: Int32[Array, " n_rows_plus_1"],
    indices: Int32[Array, " nnz"],
    weights: Float[Array, " nnz_or_1"],
    targets: Float[Array, " nnz_or_1"],
    table: Float[Array, "n_columns rank"],
    gram: Float[Array, "rank rank"],
    l2: Float[Array, " n_rows_or_1"],
    *,
    start: Float[Array, "n_rows rank"] | None = None,
    rhs: Float[Array, "n_rows rank"] | None = None,
    solver: Solver = "auto",
    iterations: int = 3,
    block: int = 32,
    implementation: Implementation = "auto",
) -> Solution:
    """Solves the least-squares system of every row.

    Differentiable in `weights`, `targets`, `table`, `gram`, `l2` and `rhs` by the implicit function
    theorem: the gradient is that of the exact minimiser, whichever solver came near it.

    Args:
        indptr: Row pointer.
        indices: Table row of each entry, in `[0, n_columns)`; another value makes its row NaN or is clamped.
        weights: w, one an entry or one for all.
        targets: b, one an entry or one for all.
        table: The fixed side, float32 or bfloat16; accumulation is in float32.
        gram: The part of the matrix that all rows share: unobserved weight times `table^T table`.
        l2: One a row or one for all.
        start: Where "cg" and "subspace" begin; zeros if None. "cholesky" needs none.
        rhs: Added to the right side.
        solver: "cholesky" is exact; "cg" takes `iterations` conjugate-gradient steps; "subspace" solves
            exactly for `block` coordinates at a time, `iterations` times over all (iALS++). "auto" is "cg" if
            there is a start and the rank is above 32, else "cholesky".
        iterations: Steps of "cg", passes of "subspace".
        block: Coordinates solved together by "subspace".
        implementation: See `kernels.op.dispatch`.

    Returns:
        `Solution(x, loss, jittered)`.

    Raises:
        ValueError: An unknown solver, or shapes that do not fit.
        NotImplementedError: The implementation asked for cannot run here.

    >>> one = jnp.ones(1)
    >>> v = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> rows = jnp.array([0, 2], jnp.int32), jnp.array([0, 1], jnp.int32)
    >>> solve(*rows, one, jnp.array([3.0, 4.0]), v, jnp.zeros((2, 2)), 0 * one).x.tolist()
    [[3.0, 2.0]]
    """
    n_rows, rank = indptr.shape[0] - 1, table.shape[1]
    if solver not in get_args(Solver):
        raise ValueError(f"kernels.least_squares: {solver=} must be one of {get_args(Solver)}")
    if iterations < 1 or block < 1:
        raise ValueError(f"kernels.least_squares: {iterations=} and {block=} must be at least 1")
    for name, array, accepted in (
        ("weights", weights, [(1,), indices.shape]),
        ("targets", targets, [(1,), indices.shape]),
        ("gram", gram, [(rank, rank)]),
        ("l2", l2, [(1,), (n_rows,)]),
        ("start", start, [(n_rows, rank)]),
        ("rhs", rhs, [(n_rows, rank)]),
    ):
        if array is not None and array.shape not in accepted:
            raise ValueError(f"kernels.least_squares: {name}.shape={array.shape} must be one of {accepted}")
    if solver == "auto":
        solver = "cg" if start is not None and rank > 32 else "cholesky"
    if solver == "cholesky":
        start, iterations, block = None, 1, rank
    if start is None:
        start = jnp.zeros((n_rows, rank), jnp.float32)
    if rhs is None:
        rhs = jnp.zeros((0, rank), jnp.float32)
    arguments = map(jnp.asarray, (indptr, indices, weights, targets, table, gram, l2, rhs, start))
    static = (solver, iterations, min(block, rank), implementation)
    return _solve(static, *arguments)


def _reference(
    indptr, indices, weights, targets, table, gram, l2, rhs, start, *, solver: str, iterations: int, block: int
) -> Solution:
    n_rows, rank = start.shape
    if n_rows == 0:
        return Solution(start, jnp.zeros(0, jnp.float32), jnp.zeros(0, jnp.int32))
    if indices.shape[0] == 0:
        indices, weights, targets = jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.float32), jnp.zeros(1, jnp.float32)
    block_rows = max(1, min(n_rows, _BLOCK_ELEMENTS // rank**2))

    def one_block(first_row):
        rows = first_row + jnp.arange(block_rows, dtype=jnp.int32)
        inside = jnp.minimum(rows, n_rows - 1)
        starts = indptr[inside]
        ends = jnp.where(rows < n_rows, indptr[inside + 1], starts)
        a, b = _normal_equations(starts, ends, indices, weights, targets, table)
        l2_rows = jnp.broadcast_to(l2, (n_rows,))[inside]
        a = a + gram[None] + l2_rows[:, None, None] * jnp.eye(rank, dtype=jnp.float32)[None]
        b = b + (rhs[inside] if rhs.shape[0] else 0.0)
        x, jittered = _SOLVERS[solver](a, b, start[inside], iterations, block)
        stored = ends > starts
        x = jnp.where(stored[:, None], x, 0.0)
        a_x = jnp.einsum("rij,rj->ri", a, x, precision=lax.Precision.HIGHEST)
        return x, jnp.sum(x * (a_x - 2.0 * b), axis=-1), jnp.where(stored, jittered, 0)

    first_rows = jnp.arange(0, n_rows, block_rows, dtype=jnp.int32)
    x, loss, jittered = lax.map(one_block, first_rows)
    return Solution(x.reshape(-1, rank)[:n_rows], loss.reshape(-1)[:n_rows], jittered.reshape(-1)[:n_rows])


def _normal_equations(starts, ends, indices, weights, targets, table):
    """`sum w y y^T` and `sum b y` of a block of rows, whose entries lie at `starts <= k < ends`.

    Entries are read in packed rows of fixed length, each belonging to one row (ALX, Mehta et al. 2021), so
    that long and short rows cost what they hold.
    """
    rank, n_rows = table.shape[1], starts.shape[0]
    packed_per_row = (ends - starts + (_PACK - 1)) // _PACK
    after = jnp.cumsum(packed_per_row)

    def accumulate(carry):
        first, a, b = carry
        packed = first + jnp.arange(_PACKED_ROWS, dtype=jnp.int32)
        row = jnp.minimum(jnp.searchsorted(after, packed, side="right").astype(jnp.int32), n_rows - 1)
        place = packed - (after - packed_per_row)[row]
        entry = (starts[row] + place * _PACK)[:, None] + jnp.arange(_PACK, dtype=jnp.int32)[None]
        valid = (entry < ends[row][:, None]) & (packed < after[-1])[:, None]
        entry = jnp.where(valid, entry, 0)
        y = jnp.where(valid[..., None], table[indices[entry]].astype(jnp.float32), 0.0)
        # Masked as well, so that a value that is not finite breaks its own row alone.
        w = jnp.where(valid, weights[entry if weights.shape[0] > 1 else jnp.zeros_like(entry)], 0.0)
        t = jnp.where(valid, targets[entry if targets.shape[0] > 1 else jnp.zeros_like(entry)], 0.0)
        exact = lax.Precision.HIGHEST
        outer = jnp.einsum("ple,plf->pef", y * w[..., None], y, precision=exact)
        moment = jnp.einsum("pl,ple->pe", t, y, precision=exact)
        return first + _PACKED_ROWS, a.at[row].add(outer), b.at[row].add(moment)

    zeros = (jnp.int32(0), jnp.zeros((n_rows, rank, rank), jnp.float32), jnp.zeros((n_rows, rank), jnp.float32))
    _, a, b = lax.while_loop(lambda carry: carry[0] < after[-1], accumulate, zeros)
    return a, b


def _factorized_solve(a, b):
    """Cholesky of a batch, raising the diagonal of those matrices that do not factorize."""
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)[None]
    scale = JITTER * jnp.max(jnp.abs(jnp.diagonal(a, axis1=-2, axis2=-1)), axis=-1)

    def factorize(jitter):
        x = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a + jitter[:, None, None] * eye), True), b[..., None])
        return x[..., 0]

    def failed(x):
        return ~jnp.all(jnp.isfinite(x), axis=-1)

    def retry(carry):
        x, tries, jitter, attempt = carry
        bad = failed(x)
        jitter = jnp.where(bad, scale * 10.0 ** attempt.astype(jnp.float32), jitter)
        again = factorize(jitter)
        return jnp.where(bad[:, None], again, x), tries + bad.astype(jnp.int32), jitter, attempt + 1

    x = factorize(jnp.zeros_like(scale))
    carry = (x, jnp.zeros(x.shape[0], jnp.int32), jnp.zeros_like(scale), jnp.int32(0))
    x, tries, _, _ = lax.while_loop(lambda c: jnp.any(failed(c[0])) & (c[3] < JITTER_RETRIES), retry, carry)
    return x, tries


def _cholesky(a, b, start, iterations, block):
    return _factorized_solve(a, b)


def _conjugate_gradient(a, b, start, iterations, block):
    def times(v):
        return jnp.einsum("rij,rj->ri", a, v, precision=lax.Precision.HIGHEST)

    def dot(u, v):
        return jnp.sum(u * v, axis=-1, keepdims=True)

    def ratio(top, bottom):
        return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1.0), 0.0)

    def step(_, carry):
        x, residual, p, norm = carry
        a_p = times(p)
        # NaN must pass through, so that a broken row is seen.
        alpha = jnp.where(jnp.isnan(norm), norm, ratio(norm, dot(p, a_p)))
        x, residual = x + alpha * p, residual - alpha * a_p
        norm_after = dot(residual, residual)
        return x, residual, residual + ratio(norm_after, norm) * p, norm_after

    residual = b - times(start)
    x, _, _, _ = lax.fori_loop(0, iterations, step, (start, residual, residual, dot(residual, residual)))
    return x, jnp.zeros(x.shape[0], jnp.int32)


def _subspace(a, b, start, iterations, block):
    def one_pass(_, carry):
        x, jittered = carry
        for first in range(0, start.shape[1], block):
            part = slice(first, first + block)
            gradient = b[:, part] - jnp.einsum("rij,rj->ri", a[:, part], x, precision=lax.Precision.HIGHEST)
            delta, tries = _factorized_solve(a[:, part, part], gradient)
            x, jittered = x.at[:, part].add(delta), jittered + tries
        return x, jittered

    return lax.fori_loop(0, iterations, one_pass, (start, jnp.zeros(start.shape[0], jnp.int32)))


_SOLVERS = {"cholesky": _cholesky, "cg": _conjugate_gradient, "subspace": _subspace}


def _numba(*arguments, **static) -> Solution:
    return Solution(*least_squares_numba.solve_rows(*arguments, **static))


def _supports(indptr, indices, weights, targets, table, *_, **static) -> str | None:
    if table.shape[1] > least_squares_numba.MAX_RANK:
        return f"rank {table.shape[1]} is above {least_squares_numba.MAX_RANK}"
    if table.dtype not in (jnp.float32, jnp.bfloat16):
        return f"a table of {table.dtype} is neither float32 nor bfloat16"
    return None


OP = Op("least_squares", _reference, _supports, numba=_numba)


def _dispatched(static, *arguments) -> Solution:
    solver, iterations, block, implementation = static
    return dispatch(OP, *arguments, implementation=implementation, solver=solver, iterations=iterations, block=block)


_solve: Any = jax.custom_vjp(_dispatched, nondiff_argnums=(0,))


def _solve_forward(static, *arguments):
    solution = _solve(static, *arguments)
    return solution, (arguments, solution.x)


def _solve_backward(static, residuals, cotangent):
    """One more solve with the same matrix, then a pass over the entries.

    With A x = b and lam = A^-1 xbar: Abar = -lam x^T + lossbar x x^T and bbar = lam - 2 lossbar x.
    """
    (indptr, indices, weights, targets, table, gram, l2, rhs, start), x = residuals
    rank = table.shape[1]
    exact = ("cholesky", 1, rank, static[3])
    no_target = jnp.zeros(1, jnp.float32)
    lam = _solve(exact, indptr, indices, weights, no_target, table, gram, l2, cotangent.x, jnp.zeros_like(x)).x
    loss_bar = cotangent.loss[:, None]
    b_bar = lam - 2.0 * loss_bar * x

    chunk = min(max(indices.shape[0], 1), 1 << 14)
    padded = jnp.pad(indices, (0, -indices.shape[0] % chunk if indices.shape[0] else 1))

    def accumulate(carry, first):
        table_bar, weights_bar, targets_bar = carry
        entry = first + jnp.arange(chunk, dtype=jnp.int32)
        valid = (entry < indices.shape[0])[:, None]
        row = jnp.clip(jnp.searchsorted(indptr, entry, side="right").astype(jnp.int32) - 1, 0, x.shape[0] - 1)
        column = padded[entry]
        y = jnp.where(valid, table[column].astype(jnp.float32), 0.0)
        x_row, lam_row, b_row = (jnp.where(valid, v[row], 0.0) for v in (x, lam, b_bar))
        y_x, y_lam = jnp.sum(y * x_row, -1, keepdims=True), jnp.sum(y * lam_row, -1, keepdims=True)
        own = loss_bar[row] * y_x
        w = weights[entry if weights.shape[0] > 1 else jnp.zeros_like(entry)][:, None]
        t = targets[entry if targets.shape[0] > 1 else jnp.zeros_like(entry)][:, None]
        y_bar = w * (2.0 * own * x_row - y_x * lam_row - y_lam * x_row) + t * b_row
        table_bar = table_bar.at[column].add(jnp.where(valid, y_bar, 0.0))
        weights_bar = _add_at(weights_bar, entry, (own * y_x - y_lam * y_x)[:, 0])
        targets_bar = _add_at(targets_bar, entry, jnp.sum(y * b_row, -1))
        return (table_bar, weights_bar, targets_bar), None

    zeros = (jnp.zeros(table.shape, jnp.float32), jnp.zeros_like(weights), jnp.zeros_like(targets))
    firsts = jnp.arange(0, padded.shape[0], chunk, dtype=jnp.int32)
    (table_bar, weights_bar, targets_bar), _ = lax.scan(accumulate, zeros, firsts)

    outer = jnp.einsum("ri,rj->ij", loss_bar * x - lam, x, precision=lax.Precision.HIGHEST)
    l2_bar = jnp.sum((loss_bar * x - lam) * x, axis=-1)
    return (
        None,
        None,
        weights_bar,
        targets_bar,
        table_bar.astype(table.dtype),
        0.5 * (outer + outer.T),
        l2_bar if l2.shape[0] == x.shape[0] else jnp.sum(l2_bar, keepdims=True),
        b_bar[: rhs.shape[0]],
        jnp.zeros_like(start),
    )


def _add_at(total, entry, amount):
    if total.shape[0] == 1:
        return total + jnp.sum(amount, keepdims=True)
    return total.at[entry].add(amount, mode="drop")


_solve.defvjp(_solve_forward, _solve_backward)
