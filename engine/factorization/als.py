"""Alternating least squares: implicit feedback and explicit ratings, on one kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ...kernels import least_squares
from ...kernels.csr import CSR, SparseMatrix
from ...kernels.op import Implementation
from .algorithm import Algorithm, Factors, Info
from .objectives import ExplicitObjective, ImplicitObjective, RankingSgd, RatingSgd, Terms
from .parts import check_shape_parameters, info_of, random_rows, require_at_least, scalar
from .settings import with_settings

Objective = ExplicitObjective | ImplicitObjective | RatingSgd
_RowSolver = Callable[[CSR, Array, Terms, Objective, Array], least_squares.Solution]


@with_settings
def implicit_als(
    rank: int,
    *,
    l2: Any = 3e-3,
    unobserved_weight: Any = None,
    l2_exponent: Any = None,
    alpha: Any = None,
    confidence_offset: Any = 1.0,
    solver: least_squares.Solver = "auto",
    iterations: int = 3,
    block: int = 32,
    table_dtype: Any = jnp.float32,
    init_std: float = 0.1,
    implementation: Implementation = "auto",
) -> Algorithm:
    """Matrix factorization of implicit feedback, every unobserved pair counting a little.

    Args:
        rank: Length of the vectors.
        l2: Regularization, at least 0. A row's share is `l2 (n_row + unobserved_weight n_columns)^l2_exponent`.
        unobserved_weight: Weight of every pair, at least 0; if None, 0.1 without `alpha` and 1 with it.
        l2_exponent: nu; if None, 1 without `alpha` (frequency-scaled, Rendle et al.) and 0 with it.
        alpha: None: each interaction weighs 1 whatever its value. A number: confidence grows with the value.
        confidence_offset: With `alpha`, c = confidence_offset + alpha |r|: 1 is Hu, Koren, Volinsky's; 0 is that
            of the `implicit` library.
        solver: "cholesky", "cg", "subspace" (iALS++) or "auto"; see `kernels.least_squares.solve`.
        iterations: Conjugate-gradient steps, or passes over the blocks, in a half sweep.
        block: Coordinates solved together by "subspace".
        table_dtype: float32, or bfloat16 to halve the memory traffic of the gathered side at a rounding of 2^-9.
        init_std: The first vectors are normal with this standard deviation over sqrt(rank).
        implementation: Of the kernel.

    Returns:
        `Algorithm` whose state is `Factors`. Numbers given as JAX arrays may be traced, for grids by `vmap`.

    Raises:
        ValueError: A parameter out of its range.

    Source: Hu, Koren, Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets"; Rendle, Krichene,
    Zhang, Koren 2021, "Revisiting the Performance of iALS on Item Recommendation Benchmarks" and "iALS++".

    >>> import jax
    >>> from affinax.engine.data import Interactions
    >>> data = Interactions.from_coo([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 3]).to_device()
    >>> als = implicit_als(2, l2=1e-3)
    >>> factors = als.init(jax.random.key(0), data)
    >>> for _ in range(8):
    ...     factors, info = als.step(jax.random.key(0), factors, data)
    >>> bool((factors.users @ factors.items.T)[0, 1] > (factors.users @ factors.items.T)[0, 2])
    True
    """
    unobserved_weight = (0.1 if alpha is None else 1.0) if unobserved_weight is None else unobserved_weight
    l2_exponent = (1.0 if alpha is None else 0.0) if l2_exponent is None else l2_exponent
    require_at_least(0, l2=l2, unobserved_weight=unobserved_weight, alpha=0.0 if alpha is None else alpha)

    def objective() -> Objective:
        return ImplicitObjective(
            scalar(l2),
            scalar(l2_exponent),
            scalar(unobserved_weight),
            None if alpha is None else scalar(alpha),
            scalar(confidence_offset),
        )

    solve = _row_solver(solver, iterations, block, table_dtype, implementation)
    check_shape_parameters(rank, init_std)

    def init(key: PRNGKeyArray, data: SparseMatrix) -> Factors:
        users, items = random_rows(key, data, rank, init_std)
        return Factors(users, items, objective=objective())

    return Algorithm(init, _implicit_step(solve), "implicit ALS")


@functools.cache
def _implicit_step(solve: _RowSolver) -> Callable[..., tuple[Factors, Info]]:
    def step(key: PRNGKeyArray, state: Factors, data: SparseMatrix) -> tuple[Factors, Info]:
        goal = objective_of(state)
        user_terms, item_terms = goal.terms(data.by_user.values), goal.terms(data.by_item.values)
        users = solve(data.by_user, state.items, user_terms, goal, state.users).x
        items = solve(data.by_item, users, item_terms, goal, state.items)
        loss = jnp.sum(items.loss) + _penalty(users, data.by_user, state.items.shape[0], goal)
        loss = loss + _sum_over_entries(item_terms.constants, data.by_item.nnz)
        return state._replace(users=users, items=items.x), info_of(loss, users, items.x)

    return step


@with_settings
def explicit_als(
    rank: int,
    *,
    l2: Any = 0.05,
    l2_exponent: Any = 1.0,
    biases: bool = True,
    solver: least_squares.Solver = "auto",
    iterations: int = 3,
    block: int = 32,
    table_dtype: Any = jnp.float32,
    init_std: float = 0.1,
    implementation: Implementation = "auto",
) -> Algorithm:
    """Matrix factorization of ratings: `r ~ mean + user_bias + item_bias + x_u . y_i`.

    A side's biases are solved together with its vectors, as the coordinate that meets a constant 1.

    Args:
        rank: Length of the vectors, besides the biases.
        l2: Regularization of vectors and biases, at least 0; a row's share is `l2 n_row^l2_exponent`.
        l2_exponent: 1 is ALS-WR, 0 the plain ridge.
        biases: Whether to have a mean and biases; without them the model is `x_u . y_i` alone.
        solver: As in `implicit_als`, and so on to
        iterations: the steps,
        block: the blocks,
        table_dtype: the gathered side,
        init_std: the first vectors and
        implementation: the kernel.

    Returns:
        `Algorithm` whose state is `Factors`.

    Raises:
        ValueError: A parameter out of its range.

    Source: Zhou, Wilkinson, Schreiber, Pan 2008, "Large-scale Parallel Collaborative Filtering for the Netflix
    Prize"; Koren, Bell, Volinsky 2009, "Matrix Factorization Techniques for Recommender Systems" (eq. 3).

    A matrix of rank 2 comes back from vectors of length 2:

    >>> import jax
    >>> import numpy as np
    >>> from affinax.engine.data import Interactions
    >>> r = np.array([[1, 2, 3], [2, 3, 4], [3, 4, 5]], np.float32)
    >>> users, items = np.indices((3, 3)).reshape(2, 9)
    >>> data = Interactions.from_coo(users, items, r.ravel()).to_device()
    >>> als = explicit_als(2, l2=1e-6, l2_exponent=0.0, biases=False)
    >>> factors = als.init(jax.random.key(0), data)
    >>> for _ in range(50):
    ...     factors, info = als.step(jax.random.key(0), factors, data)
    >>> bool(jnp.abs(factors.users @ factors.items.T - r).max() < 1e-3)
    True
    """
    require_at_least(0, l2=l2)
    solve = _row_solver(solver, iterations, block, table_dtype, implementation)
    check_shape_parameters(rank, init_std)

    def init(key: PRNGKeyArray, data: SparseMatrix) -> Factors:
        users, items = random_rows(key, data, rank, init_std)
        objective = ExplicitObjective(scalar(l2), scalar(l2_exponent))
        if not biases:
            return Factors(users, items, objective=objective)
        n_users, n_items = data.shape
        zeros = jnp.zeros(n_users, jnp.float32), jnp.zeros(n_items, jnp.float32)
        return Factors(users, items, *zeros, jnp.mean(data.by_user.values), objective)

    return Algorithm(init, _explicit_step(solve), "explicit ALS")


@functools.cache
def _explicit_step(solve: _RowSolver) -> Callable[..., tuple[Factors, Info]]:
    def step(key: PRNGKeyArray, state: Factors, data: SparseMatrix) -> tuple[Factors, Info]:
        goal = objective_of(state)
        user_side = rating_system(data.by_user, state, side="users")
        start = joined(state.users, state.user_bias)
        user_rows = solve(data.by_user, user_side[0], user_side[1], goal, start).x
        users, user_bias = separated(user_rows, state.users.shape[1])
        state = state._replace(users=users, user_bias=user_bias)
        table, terms = rating_system(data.by_item, state, side="items")
        solved = solve(data.by_item, table, terms, goal, joined(state.items, state.item_bias))
        items, item_bias = separated(solved.x, state.users.shape[1])
        loss = jnp.sum(solved.loss) + _penalty(user_rows, data.by_user, items.shape[0], goal)
        loss = loss + _sum_over_entries(terms.constants, data.by_item.nnz)
        state = state._replace(items=items, item_bias=item_bias)
        return state, info_of(loss, user_rows, solved.x)

    return step


def objective_of(model: Factors) -> Objective:
    """The objective that a model was trained on.

    Raises:
        ValueError: It has none, so nothing says what its rows minimise.
    """
    if model.objective is None or isinstance(model.objective, RankingSgd):
        raise ValueError(
            "these factors have no least-squares objective: take those of implicit_als, explicit_als or biased_mf"
        )
    return model.objective


def rating_system(rows: CSR, model: Factors, side: str) -> tuple[Float[Array, "n width"], Terms]:
    """The table and terms from which the rows of one side of a rating model are solved.

    With biases the table has a further column of ones, whose coordinate is the row's bias, and the targets are
    what mean and the other side's biases leave over.
    """
    table, other_bias = (model.items, model.item_bias) if side == "users" else (model.users, model.user_bias)
    objective = objective_of(model)
    if model.mean is None or other_bias is None:
        return table, objective.terms(rows.values)
    rest = rows.values - model.mean - other_bias[rows.indices]
    return joined(table, jnp.ones(table.shape[0], table.dtype)), objective.terms(rest)


def joined(rows: Array, bias: Array | None) -> Array:
    """Vectors with their biases as a last column, where there are any."""
    return rows if bias is None else jnp.concatenate([rows, bias[:, None]], axis=1)


def separated(rows: Array, rank: int) -> tuple[Array, Array | None]:
    """The inverse of `joined`."""
    return (rows, None) if rows.shape[1] == rank else (rows[:, :rank], rows[:, rank])


def ridge(rows: CSR, n_columns: int, objective: Objective) -> Float[Array, " n_rows"]:
    """Regularization of each row: `l2 (n_row + a0 n_columns)^nu`."""
    counts = jnp.diff(rows.indptr).astype(jnp.float32)
    return objective.l2 * (counts + objective.unobserved_weight * n_columns) ** objective.l2_exponent


def gramian(table: Float[Array, "n rank"], objective: Objective) -> Float[Array, "rank rank"]:
    """`a0 table^T table` in float32; zeros where no unobserved pair counts."""
    if not isinstance(objective, ImplicitObjective):
        return jnp.zeros((table.shape[1], table.shape[1]), jnp.float32)
    product = jnp.matmul(table.T, table, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return objective.unobserved_weight * product


@functools.cache  # so that the same choices give the same step, which is compiled once
def _row_solver(solver, iterations, block, table_dtype, implementation) -> _RowSolver:
    if solver not in get_args(least_squares.Solver):
        raise ValueError(f"{solver=} must be one of {get_args(least_squares.Solver)}")
    require_at_least(1, iterations=iterations, block=block)
    table_dtype = jnp.dtype(table_dtype)
    if table_dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"{table_dtype=} must be float32 or bfloat16")

    def solve(rows: CSR, table: Array, terms: Terms, objective: Objective, start: Array) -> least_squares.Solution:
        return least_squares.solve(
            rows.indptr,
            rows.indices,
            terms.weights,
            terms.targets,
            table.astype(table_dtype),
            gramian(table, objective),
            ridge(rows, table.shape[0], objective),
            start=start,
            solver=solver,
            iterations=iterations,
            block=block,
            implementation=implementation,
        )

    return solve


def _penalty(rows: Array, sparse: CSR, n_columns: int, objective: Objective) -> Float[Array, ""]:
    return jnp.sum(ridge(sparse, n_columns, objective) * jnp.sum(rows * rows, axis=-1))


def _sum_over_entries(values: Array, nnz: int) -> Float[Array, ""]:
    return jnp.sum(values) if values.shape[0] != 1 else values[0] * nnz
