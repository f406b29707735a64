"""The exceptions of the library: few, typed, and each saying what is wrong, where, and what would do."""

from __future__ import annotations

from typing import Any


class InteractionError(ValueError):
    """Interactions, ids or a data file that cannot be used as they are."""


class FeatureError(ValueError):
    """Features, or a design matrix of them, that cannot be used as they are."""


class CompressionError(ValueError):
    """Numbers that cannot be made smaller as they are."""


class ModelFileError(ValueError):
    """A saved model that is cut short, altered, or not one of ours."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model or version."""


class DivergenceError(ArithmeticError):
    """Training met a number that is not finite.

    Attributes:
        state: The last good state: that before the step that failed.
    """

    def __init__(self, message: str, state: Any = None):
        super().__init__(message)
        self.state = state
