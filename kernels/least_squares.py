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

from . import least_squares_numba, least_squares_reference
from .op import Implementation, Op, dispatch

Solver = Literal["auto", "cholesky", "cg", "subspace"]


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
    weights: Float[Array, " n_weights"],
    targets: Float[Array, " n_targets"],
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


def _reference(*arguments, **static) -> Solution:
    return Solution(*least_squares_reference.solve_rows(*arguments, **static))


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
