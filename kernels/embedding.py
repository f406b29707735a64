"""Embedding tables: rows looked up, pooled, and moved in place by an optimizer, whose step copies no table."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from . import embedding_numba, embedding_reference, embedding_updates_numba, lookup_numba
from .csr import CSR
from .op import Implementation, Op, dispatch
from .product_rows import ProductRows
from .quantized_rows import QuantizedRows, Table, floats_of

Mode = Literal["sum", "mean"]
Optimizer = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]
Slots = tuple[Array, ...]
_CACHED = 1 << 20  # bytes of a table that stays in the cache of a core


def lookup(
    table: Table, ids: Int32[Array, "*shape"], *, implementation: Implementation = "auto"
) -> Float[Array, "*shape d"]:
    """`rows[..., :] = table[ids[...], :]`.

    Differentiable in the table. The gradient sums the cotangents of each row in the order of the ids, so that it is the
    same to the last bit on any number of threads.

    Args:
        table: Rows, float32 or bfloat16; or quantized, which are given as numbers.
        ids: Rows asked for. A negative one is none and gives zeros; one beyond the table gives NaN.
        implementation: See `kernels.op.dispatch`.

    Returns:
        The rows, in the dtype of the table.

    Raises:
        ValueError: A table or ids of another kind.

    >>> lookup(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, -1, 2])).tolist()
    [[3.0, 4.0], [0.0, 0.0], [nan, nan]]
    """
    _require_ids("ids", ids, ndim=None)
    if isinstance(table, ProductRows | QuantizedRows):
        rows = table[jnp.clip(ids, 0, table.shape[0] - 1)]
        ids = ids[..., None]
        return jnp.where(ids < 0, 0.0, jnp.where(ids < table.shape[0], rows, jnp.nan))
    _require_table(table)
    if implementation == "auto" and table.size * table.dtype.itemsize <= _CACHED:
        implementation = "reference"  # whose gather and scatter are the faster where nothing waits for memory
    rows: Any = _lookup(table, ids.reshape(-1), implementation)
    return rows.reshape(*ids.shape, table.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table: Array, ids: Array, implementation: Implementation) -> Array:
    return dispatch(LOOKUP, table, ids, implementation=implementation)


def _lookup_forward(table: Array, ids: Array, implementation: Implementation):
    # Of the table the gradient needs the shape alone, which a slice without columns carries.
    return _lookup(table, ids, implementation), (table[:, :0], ids)


def _lookup_backward(implementation: Implementation, saved, cotangent):
    empty, ids = saved
    static = {"n_rows": empty.shape[0], "dtype": empty.dtype}
    return dispatch(LOOKUP_GRADIENT, cotangent, ids, implementation=implementation, **static), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def bag(
    table: Table, rows: CSR, *, mode: Mode = "sum", implementation: Implementation = "auto"
) -> Float[Array, "n_bags d"]:
    """`pooled[b] = sum over the entries e of b of w_e table[i_e]`, and for "mean" over the sum of the w_e.

    Differentiable in the table and in the weights, the first as `lookup` is.

    Args:
        table: Rows, float32 or bfloat16; or quantized, all of which are float32 for the time.
        rows: The bags: `indices` are rows of the table, in any order and repeated or not, `values` their weights,
            float32, one each or one for all. An entry with a negative index is none, and counts for the mean neither;
            one beyond the table makes its bag NaN. Entries beyond `indptr[-1]` are in no bag.
        mode: Sum, or mean by weight.
        implementation: See `kernels.op.dispatch`.

    Returns:
        The sums or means, in the dtype of the table, zeros for an empty bag. A mean whose weights sum to 0 is 0, too.

    Raises:
        ValueError: A table, indices or values of another kind, or an unknown mode.

    >>> bags = CSR(jnp.array([0, 2, 2], jnp.int32), jnp.array([0, 1], jnp.int32), jnp.array([1.0, 3.0]))
    >>> bag(jnp.array([[4.0], [8.0]]), bags).tolist(), bag(jnp.array([[4.0], [8.0]]), bags, mode="mean").tolist()
    ([[28.0], [0.0]], [[7.0], [0.0]])
    """
    table = floats_of(table)
    _require_table(table)
    _require_bags("rows", rows)
    if mode not in get_args(Mode):
        raise ValueError(f"kernels.embedding: {mode=} must be one of {get_args(Mode)}")
    pooled: Any = _pool(table, *rows, implementation)
    sums, totals = pooled
    if mode == "mean":
        sums = sums * jnp.where(totals == 0, 0.0, 1 / jnp.where(totals == 0, 1.0, totals))[:, None]
    return sums.astype(table.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _pool(table: Array, indptr: Array, indices: Array, values: Array, implementation: Implementation):
    """The sums, float32, and those of the weights, through which a mean has its gradient."""
    return dispatch(POOL, table, indptr, indices, values, implementation=implementation)


def _pool_forward(table: Array, indptr: Array, indices: Array, values: Array, implementation: Implementation):
    return _pool(table, indptr, indices, values, implementation), (table, indptr, indices, values)


def _pool_backward(implementation: Implementation, saved, cotangents):
    table, *rows = saved
    # Two calls: a program that needs one of the gradients drops the other.
    static = {"n_rows": table.shape[0], "dtype": table.dtype}
    of_table = dispatch(TABLE_GRADIENT, cotangents[0], *rows, implementation=implementation, **static)
    of_weights = dispatch(WEIGHT_GRADIENT, table, *rows, *cotangents, implementation=implementation)
    return of_table, None, None, of_weights


_pool.defvjp(_pool_forward, _pool_backward)


def start_slots(table: Float[Array, "n *d"], optimizer: Optimizer) -> Slots:
    """What the optimizer remembers of each row at the start, float32.

    Args:
        table: `[n, d]` or `[n]`.
        optimizer: See `update_rows`.

    Returns:
        Arrays whose first axis are the rows: none for "sgd", the sums of squares for "adagrad", one a row for
        "rowwise_adagrad", the number of updates and both moments for "adam".

    Raises:
        ValueError: An unknown optimizer.

    >>> [slot.shape for slot in start_slots(jnp.ones((3, 2)), "adam")]
    [(3,), (3, 2), (3, 2)]
    """
    _require_optimizer(optimizer)
    if optimizer == "sgd":
        return ()
    if optimizer == "adam":
        moments = (jnp.zeros(table.shape, jnp.float32) for _ in range(2))
        return jnp.zeros(table.shape[0], jnp.int32), *moments
    shape = table.shape if optimizer == "adagrad" else table.shape[:1]
    return (jnp.full(shape, embedding_reference.ADAGRAD_START, jnp.float32),)


def update_rows(
    table: Float[Array, "n *d"],
    slots: Slots,
    ids: Int32[Array, " m"] | CSR,
    gradients: Float[Array, "m *d"],
    *,
    optimizer: Optimizer,
    learning_rate: Any,
    implementation: Implementation = "auto",
) -> tuple[Float[Array, "n *d"], Slots]:
    """One step of an optimizer for the rows `ids`, as if every row had one of its own.

    The gradients of a row that occurs several times are added first, in their order. All other rows, and what is
    remembered of them, stay as they are: the moments of "adam" do not decay while a row is away, and its bias
    correction counts the row's own updates. With g the gradient of a row, t that number and r the learning rate:

    - "sgd": `row -= r g`;
    - "adagrad": `s += g^2`, from 0.1 on, and `row -= r g / sqrt(s + 1e-7)`;
    - "rowwise_adagrad": the same, but `s += mean(g^2)`, one number a row;
    - "adam": `m += 0.1 (g - m)`, `v += 0.001 (g^2 - v)`,
      `row -= r (m / (1 - 0.9^t)) / (sqrt(v / (1 - 0.999^t)) + 1e-8)`.

    On CPU the table and slots are changed in place where nothing else needs them as they were: where a jitted function
    is given them to keep (`donate_argnums`), and in a scan. Then a step costs what its rows do, whatever the table's
    size; if that is large, begin with its `huge_pages.copy`, as `fit` does.

    Args:
        table: `[n, d]` or `[n]`.
        slots: From `start_slots`, or of the step before.
        ids: Rows; one that is negative or beyond the table is passed over. Or bags of them: then the gradients are
            those of `bag(table, ids)`, and a row's is the sum of its bags', by weight, which nothing writes out.
        gradients: One for each of the ids, or for each bag.
        optimizer: See above; but for "rowwise_adagrad" those of `optax`, with its defaults.
        learning_rate: Step length; it may be traced.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `(table, slots)`.

    Raises:
        ValueError: An unknown optimizer, slots of another one, or shapes that do not go together.

    Source: Duchi, Hazan, Singer 2011 (AdaGrad); Kingma, Ba 2015 (Adam); Mudigere et al. 2022, "Software-Hardware
    Co-design for Fast and Scalable Training of Deep Learning Recommendation Models" (one accumulator a row).

    >>> table, slots = update_rows(jnp.ones(3), (), jnp.array([1, 1]), jnp.ones(2), optimizer="sgd", learning_rate=0.25)
    >>> table.tolist()
    [1.0, 0.5, 1.0]
    """
    _require_optimizer(optimizer)
    if isinstance(ids, CSR):
        _require_bags("ids", ids)
        op, named, n = UPDATE_BAGS, ids, ids.n_rows
    else:
        _require_ids("ids", ids)
        op, named, n = UPDATE, (ids,), ids.shape[0]
    if gradients.shape != (n, *table.shape[1:]):
        raise ValueError(
            f"kernels.embedding: {gradients.shape=} must be {(n, *table.shape[1:])}: of each id a row like the table's"
        )
    shapes = [slot.shape for slot in jax.eval_shape(lambda: start_slots(table, optimizer))]
    if [slot.shape for slot in slots] != shapes:
        raise ValueError(
            f"kernels.embedding: slots of {[slot.shape for slot in slots]} must be {shapes}, which {optimizer=} has"
        )
    rate = jnp.asarray(learning_rate, jnp.float32)
    moved, *remembered = dispatch(
        op, table, *named, gradients, rate, *slots, implementation=implementation, optimizer=optimizer
    )
    return moved, tuple(remembered)


def _require_table(table: Array) -> None:
    if table.ndim != 2 or table.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"kernels.embedding: table of {table.dtype}{list(table.shape)} must be float32 or bfloat16, [n, d]"
        )


def _require_ids(name: str, ids: Array, ndim: int | None = 1) -> None:
    if ids.dtype != jnp.int32 or ndim not in (None, ids.ndim):
        kind = "int32" if ndim is None else "int32, [m]"
        raise ValueError(f"kernels.embedding: {name} of {ids.dtype}{list(ids.shape)} must be {kind}")


def _require_bags(name: str, rows: CSR) -> None:
    _require_ids(f"{name}.indices", rows.indices)
    if rows.values.shape not in ((1,), rows.indices.shape) or rows.values.dtype != jnp.float32:
        raise ValueError(
            f"kernels.embedding: {name}.values of {rows.values.dtype}{list(rows.values.shape)} must be float32, "
            f"[1] or {list(rows.indices.shape)}, like the indices"
        )


def _require_optimizer(optimizer: str) -> None:
    if optimizer not in get_args(Optimizer):
        raise ValueError(f"kernels.embedding: {optimizer=} must be one of {get_args(Optimizer)}")


def _supports(*arrays: Array, dtype: Any = jnp.float32, **static: Any) -> str | None:
    kinds = {str(a.dtype) for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)} | {jnp.dtype(dtype).name}
    return None if kinds == {"float32"} else f"tables and gradients of {sorted(kinds)} must all be float32"


LOOKUP = Op("lookup", embedding_reference.lookup, _supports, numba=lookup_numba.lookup)
LOOKUP_GRADIENT = Op(
    "lookup_gradient", embedding_reference.lookup_gradient, _supports, numba=lookup_numba.lookup_gradient
)
POOL = Op("bag", embedding_reference.pool, _supports, numba=embedding_numba.pool)
TABLE_GRADIENT = Op(
    "bag_table_gradient", embedding_reference.table_gradient, _supports, numba=embedding_numba.table_gradient
)
WEIGHT_GRADIENT = Op(
    "bag_weight_gradient", embedding_reference.weight_gradient, _supports, numba=embedding_numba.weight_gradient
)
UPDATE = Op("update_rows", embedding_reference.update_rows, _supports, numba=embedding_updates_numba.update_rows)
UPDATE_BAGS = Op(
    "update_rows of bags", embedding_reference.update_bags, _supports, numba=embedding_updates_numba.update_bags
)
