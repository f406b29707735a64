"""The meaning of `kernels.least_squares`, in `jax.numpy`: normal equations of each row, then a dense solve."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from .least_squares_blocks import JITTER, JITTER_RETRIES

# A step of a loop costs an accelerator much the same however little it does, so steps are large and bounded by memory
# alone: 128 MiB of matrices, 256 of what is added to them. An eighth of the latter took three times as long.
_PACK = 32  # entries in one packed row
_PACKED_ELEMENTS = 1 << 26  # float32 entries of the products of the packed rows in one step of the loop over a block
_BLOCK_ELEMENTS = 1 << 25  # float32 entries of the normal matrices held at once


def solve_rows(
    indptr, indices, weights, targets, table, gram, l2, rhs, start, *, solver: str, iterations: int, block: int
):
    """`(x, loss, jittered)` of `least_squares.solve`, by blocks of rows that bound the memory."""
    n_rows, rank = start.shape
    if n_rows == 0:
        return start, jnp.zeros(0, jnp.float32), jnp.zeros(0, jnp.int32)
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
    return x.reshape(-1, rank)[:n_rows], loss.reshape(-1)[:n_rows], jittered.reshape(-1)[:n_rows]


def _normal_equations(starts, ends, indices, weights, targets, table):
    """`sum w y y^T` and `sum b y` of a block of rows, whose entries lie at `starts <= k < ends`.

    Entries are read in packed rows of fixed length, each belonging to one row (ALX, Mehta et al. 2021), so
    that long and short rows cost what they hold.
    """
    rank, n_rows = table.shape[1], starts.shape[0]
    packed_per_row = (ends - starts + (_PACK - 1)) // _PACK
    after = jnp.cumsum(packed_per_row)
    at_once = max(1, min(_PACKED_ELEMENTS // rank**2, n_rows + indices.shape[0] // _PACK))

    def accumulate(carry):
        first, a, b = carry
        packed = first + jnp.arange(at_once, dtype=jnp.int32)
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
        return first + at_once, a.at[row].add(outer), b.at[row].add(moment)

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
