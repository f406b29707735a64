"""Training: losses, gradient descent on any of them, checkpoints, the choice of algorithm and parameters."""

from ..checkpoint import Checkpoint, latest_step, restore_checkpoint, save_checkpoint
from . import losses
from .batches import Batches, example_batches, pair_batches
from .gradient_descent import Embedded, Rows, TrainingState, gradient, gradient_step, start_training
from .selection import Selection, Trial, select
from .sequence_windows import sequence_batches

__all__ = [
    "Batches",
    "Checkpoint",
    "Embedded",
    "Rows",
    "Selection",
    "TrainingState",
    "Trial",
    "example_batches",
    "gradient",
    "gradient_step",
    "latest_step",
    "losses",
    "pair_batches",
    "restore_checkpoint",
    "save_checkpoint",
    "select",
    "sequence_batches",
    "start_training",
]
