"""Rounding of weights by what they are multiplied with: an error that one of them makes, the others take back."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...kernels.half_bytes import packed, unpacked
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
    scale is. Without offsets weights of 0 stay 0.

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
    >>> rounded_by_inputs(weights, quantize(weights, "int4"), alike).floats().round(1).tolist()
    [[1.0, 0.0, 7.0]]
    """
    counted = np.asarray(gramian, np.float64)
    counted = counted + damping * max(float(np.mean(np.diag(counted))), 1e-12) * np.eye(len(counted))
    codes, scales = np.array(unpacked(rows.codes, rows.width)), np.array(rows.scales, np.float64)
    most, keep_zeros = 127 if rows.kind == "int8" else 7, rows.offsets is None
    for start in range(0, len(codes), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        exact = np.asarray(weights)[part].astype(np.float64)
        if rows.offsets is not None:
            exact -= np.asarray(rows.offsets)[part, None]
        codes[part], scales[part] = _descended(exact, codes[part], scales[part], counted, most, keep_zeros)
    stored = packed(jnp.asarray(codes)) if rows.kind == "int4" else jnp.asarray(codes)
    return replace(rows, codes=stored, scales=jnp.asarray(scales, jnp.float32))


def _descended(
    exact: np.ndarray, codes: np.ndarray, scales: np.ndarray, counted: np.ndarray, most: int, keep_zeros: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales that are nowhere worse than those given, by `(s c - w)' C (s c - w)` of each row."""
    codes = codes.astype(np.float64)
    for _ in range(_SWEEPS):
        slopes = (codes * scales[:, None] - exact) @ counted
        safe = np.where(scales > 0, scales, 1.0)
        for column in range(exact.shape[1]):
            best = np.rint(codes[:, column] - slopes[:, column] / (safe * counted[column, column]))
            best = np.clip(best, -most, most)
            if keep_zeros:
                best[exact[:, column] == 0] = 0
            slopes += ((best - codes[:, column]) * scales)[:, None] * counted[column]
            codes[:, column] = best
        products = codes @ counted
        along, square = np.sum(products * exact, axis=1), np.sum(products * codes, axis=1)
        scales = np.where((along > 0) & (square > 0), along / np.where(square > 0, square, 1.0), scales)
    return codes.astype(np.int8), scales
