"""What dense layers were given, on examples: what to calibrate by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class LayerInputs(NamedTuple):
    """Of one layer, over all examples that it saw.

    Attributes:
        examples: How many.
        gramian: `[n_in, n_in]`, the mean of `x x'`, float64: on its diagonal mean squares.
        reach: The greatest `|x|`.
    """

    examples: int
    gramian: np.ndarray
    reach: float

    def joined(self, other: LayerInputs) -> LayerInputs:
        """Of the examples of both."""
        examples = self.examples + other.examples
        gramian = (self.examples * self.gramian + other.examples * other.gramian) / examples
        return LayerInputs(examples, gramian, max(self.reach, other.reach))
