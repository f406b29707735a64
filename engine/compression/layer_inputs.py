"""What dense layers and tables of items were multiplied with, on examples: what to calibrate by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import CompressionError


class LayerInputs(NamedTuple):
    """Of one layer, or of a table whose rows are multiplied with queries, over all examples that it saw.

    Attributes:
        examples: How many.
        gramian: `[n_in, n_in]`, the mean of `x x'`, float64: on its diagonal mean squares.
        reach: The greatest `|x|`.
    """

    examples: int
    gramian: np.ndarray
    reach: float

    @classmethod
    def of(cls, rows: ArrayLike) -> LayerInputs:
        """Of examples `[n, n_in]`, at least one.

        Raises:
            CompressionError: No examples, or numbers that are not finite.

        >>> LayerInputs.of([[3.0, 0.0], [0.0, -4.0]])
        LayerInputs(examples=2, gramian=array([[4.5, 0. ],
               [0. , 8. ]]), reach=4.0)
        """
        exact = np.asarray(rows, np.float64)
        if exact.ndim != 2 or not exact.size:
            raise CompressionError(f"examples of shape {list(exact.shape)}: rows of numbers are accepted, at least one")
        reach = float(np.abs(exact).max())
        if not np.isfinite(reach):
            raise CompressionError("the examples have numbers that are not finite")
        return cls(len(exact), exact.T @ exact / len(exact), reach)

    def joined(self, other: LayerInputs) -> LayerInputs:
        """Of the examples of both."""
        examples = self.examples + other.examples
        gramian = (self.examples * self.gramian + other.examples * other.gramian) / examples
        return LayerInputs(examples, gramian, max(self.reach, other.reach))


def inputs_of(layer: str, inputs: Mapping[str, LayerInputs], n_in: int) -> LayerInputs:
    """What a layer of so many inputs was given.

    Raises:
        CompressionError: Nothing was seen of it, or of as many inputs.
    """
    if layer not in inputs:
        raise CompressionError(
            f"no input of {layer} was seen; inputs are there of {', '.join(sorted(inputs)) or 'none'}"
        )
    found = inputs[layer]
    if found.gramian.shape != (n_in, n_in):
        seen = len(found.gramian)
        raise CompressionError(
            f"{layer} has {n_in} inputs, and {seen} were seen: see inputs_of_layers of this model anew"
        )
    if not np.isfinite(found.gramian).all() or not 0 <= found.reach < np.inf:
        raise CompressionError(f"the inputs of {layer} are not finite, or their reach {found.reach} is below 0")
    return found
