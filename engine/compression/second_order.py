"""Rounding of weights by what they are multiplied with: an error that one of them makes, the others take back."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...kernels.half_bytes import BLOCK, packed, parts
from ...kernels.quantized_rows import QuantizedRows

_SWEEPS = 6
_AT_ONCE = 4096  # rows


def rounded_by_inputs(
    weights: Float[Array, "n_out n_in"],
    rows: QuantizedRows,
    gramian: Float[np.ndarray, "n_in n_in"],
    *,
    damping: float = 0.01,
) -> QuantizedRows:
    """Rows with codes and scales by which `sum of |x W - x W'|^2` over the inputs is less.

    Code after code of a row is set to what is best beside all its others, several times over, and after each time the
    scale is, and before it the multipliers of half bytes. Without offsets weights of 0 stay 0.

    Args:
        weights: The numbers themselves.
        rows: Their rounding to the nearest, int8 or int4.
        gramian: Of the inputs, `X' X` up to a factor.
        damping: How much each weight counts for itself, whatever the inputs, in parts of the mean of the diagonal.

    Source: the error of Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", descended as by Behdin et al. 2023, "QuantEase: Optimization-based Quantization for Language Models".

    >>> from affinax.engine.compression import quantize
    >>> weights = jnp.array([[0.4, 0.4, 7.0]])
    >>> alike = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> jnp.rint(rounded_by_inputs(weights, quantize(weights, "int4"), alike).floats()).tolist()
    [[1.0, 0.0, 7.0]]
    """
    counted = np.asarray(gramian, np.float64)
    counted = counted + damping * max(float(np.mean(np.diag(counted))), 1e-12) * np.eye(len(counted))
    halves = rows.kind == "int4"
    codes, multipliers = parts(rows.codes, rows.width) if halves else (rows.codes, jnp.ones((len(rows.codes), 1)))
    held = _Held(*(np.array(a, np.float64) for a in (codes, multipliers, rows.scales)))
    for start in range(0, len(held.codes), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        exact = np.asarray(weights)[part].astype(np.float64)
        if rows.offsets is not None:
            exact -= np.asarray(rows.offsets)[part, None]
        _descend(_Held(*(a[part] for a in held)), exact, counted, halves, keep_zeros=rows.offsets is None)
    codes, multipliers = (jnp.asarray(a, jnp.int8) for a in held[:2])
    stored = packed(codes, multipliers) if halves else codes
    return replace(rows, codes=stored, scales=jnp.asarray(held.scales, rows.scales.dtype))


class _Held(NamedTuple):
    """Float64 arrays that are written to, `[n, n_in]`, `[n, blocks]` or `[n, 1]` where a row is one, and `[n]`."""

    codes: np.ndarray
    multipliers: np.ndarray
    scales: np.ndarray

    def steps(self) -> np.ndarray:
        """From code to code, `[n, columns]`."""
        each = self.scales[:, None] * self.multipliers
        return np.repeat(each, BLOCK if each.shape[1] > 1 else self.codes.shape[1], axis=1)[:, : self.codes.shape[1]]


def _descend(held: _Held, exact: np.ndarray, counted: np.ndarray, halves: bool, *, keep_zeros: bool) -> None:
    """Nowhere to what is worse, by `(s c - w)' C (s c - w)` of each row with its steps s."""
    codes, multipliers, scales = held
    least, most = (-8, 7) if halves else (-127, 127)
    for _ in range(_SWEEPS):
        steps = held.steps()
        slopes = (codes * steps - exact) @ counted
        for column, step in enumerate(steps.T):
            best = np.rint(codes[:, column] - slopes[:, column] / (_safe(step) * counted[column, column]))
            best = np.where(step == 0, 0, np.clip(best, least, most))
            if keep_zeros:
                best[exact[:, column] == 0] = 0
            slopes += ((best - codes[:, column]) * step)[:, None] * counted[column]
            codes[:, column] = best
        for block in range(multipliers.shape[1] if halves else 0):
            columns = slice(block * BLOCK, (block + 1) * BLOCK)
            products = codes[:, columns] @ counted[columns]
            along = np.sum(codes[:, columns] * slopes[:, columns], axis=1)
            square = np.sum(products[:, columns] * codes[:, columns], axis=1) * scales
            best = np.clip(np.rint(multipliers[:, block] - along / _safe(square)), -8, 7)
            change = np.where((best == 0) | (square == 0), 0, best - multipliers[:, block])
            slopes += (change * scales)[:, None] * products
            multipliers[:, block] += change
        whole = codes * held.steps() / _safe(scales)[:, None]
        products = whole @ counted
        along, square = np.sum(products * exact, axis=1), np.sum(products * whole, axis=1)
        best = np.where((along > 0) & (square > 0), along / _safe(square), scales)
        scales[:] = best.astype(jnp.bfloat16) if halves else best


def _safe(divisors: np.ndarray) -> np.ndarray:
    return np.where(divisors == 0, 1.0, divisors)
