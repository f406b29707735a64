"""Rounding of weights by what their layer is given: an error that one weight makes, the next ones take back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...kernels.half_bytes import packed
from ...kernels.quantized_rows import QuantizedRows

_DAMPING = 0.01  # of the mean of the diagonal, added to it


def rounded_by_inputs(
    weights: Float[Array, "n_out n_in"], rows: QuantizedRows, gramian: Float[np.ndarray, "n_in n_in"]
) -> QuantizedRows:
    """Rows of the same scales and offsets, with codes by which `sum of |x W - x W'|^2` over the inputs is less.

    Column after column is rounded, and the error of each is taken back by those behind it, as far as the inputs go
    together. Inputs that nothing was seen of count as 1 % of the mean. Without offsets weights of 0 stay 0.

    Args:
        weights: The numbers themselves.
        rows: Their rounding to the nearest, int8 or int4.
        gramian: Of the inputs, `X' X` up to a factor.

    Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers".

    >>> from affinax.engine.compression import quantize
    >>> weights = jnp.array([[0.4, 0.4, 7.0]])
    >>> alike = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> rounded_by_inputs(weights, quantize(weights, "int4"), alike).floats().tolist()
    [[0.0, 1.0, 7.0]]
    """
    exact = np.asarray(weights, np.float64)
    damped = np.asarray(gramian, np.float64) + _DAMPING * max(float(np.mean(np.diag(gramian))), 1e-12) * np.eye(
        exact.shape[1]
    )
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper: what is left of the inverse for the columns behind
    scales = np.asarray(rows.scales, np.float64)
    offsets = 0.0 if rows.offsets is None else np.asarray(rows.offsets, np.float64)
    safe, most = np.where(scales > 0, scales, 1.0), 127 if rows.kind == "int8" else 7
    left, codes = exact.copy(), np.zeros(exact.shape, np.int8)
    for column in range(exact.shape[1]):
        whole = np.clip(np.rint((left[:, column] - offsets) / safe), -most, most)
        if rows.offsets is None:
            whole[exact[:, column] == 0] = 0  # what was pruned stays so; the columns behind take its share back
        codes[:, column] = whole
        error = (left[:, column] - (whole * scales + offsets)) / factor[column, column]
        left[:, column:] -= error[:, None] * factor[column, column:]
    stored = jnp.asarray(codes)
    return QuantizedRows(
        packed(stored) if rows.kind == "int4" else stored, rows.scales, rows.offsets, rows.exact, rows.width
    )
