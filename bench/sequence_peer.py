"""RecTools' SASRec, timed: run by a Python of its own, since it needs an older NumPy than the other peers.

    python3 -m venv .cache/rectools && .cache/rectools/bin/pip install 'rectools[torch]'

Takes a JSON object on the standard input and gives one: seconds of an epoch, of the whole training alone.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

warnings.filterwarnings("ignore")


class Epochs(Callback):
    """How long each epoch took; of the class, since what RecTools is given is copied."""

    seconds: ClassVar[list[float]] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.began = time.perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        Epochs.seconds.append(time.perf_counter() - self.began)


def main() -> None:
    asked = json.load(sys.stdin)
    events = np.load(asked["events"])
    torch.set_num_threads(asked["threads"])
    frame = pd.DataFrame(
        {
            Columns.User: events["users"],
            Columns.Item: events["items"],
            Columns.Weight: 1,
            Columns.Datetime: pd.to_datetime(np.arange(len(events["users"])), unit="s"),
        }
    )

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=asked["epochs"],
            accelerator="cpu",
            callbacks=[Epochs()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        n_factors=asked["width"],
        n_blocks=asked["blocks"],
        n_heads=asked["heads"],
        session_max_len=asked["length"],
        dropout_rate=asked["dropout"],
        batch_size=asked["batch_size"],
        loss="softmax",
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(frame))
    json.dump({"seconds": Epochs.seconds}, sys.stdout)


if __name__ == "__main__":
    main()
