"""What dense layers were given, on examples: what to calibrate by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class LayerInputs(NamedTuple):
    """Of one layer, over all examples that it saw.

    Attributes:
        count: How many.
        gramian: `[n_in, n_in]`, the mean of `x x'`, float64: on its diagonal mean squares.
        reach: The greatest `|x|`.
    """

    count: int
    gramian: np.ndarray
    reach: float

    def joined(self, other: LayerInputs) -> LayerInputs:
        """Of the examples of both."""
        count = self.count + other.count
        gramian = (self.count * self.gramian + other.count * other.gramian) / count
        return LayerInputs(count, gramian, max(self.reach, other.reach))
