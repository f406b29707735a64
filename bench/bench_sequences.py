"""Sequential networks by leave-one-out, against published numbers: the last item tests, the one before it validates.

All items are ranked, but for those that the user met. Training goes on from `.runs/` where it was cut off; what it has
come to is recorded as it goes.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from affinax import models
from affinax.engine.data import Interactions, Sequences
from affinax.engine.evaluation import evaluate
from affinax.engine.factorization import fit
from affinax.engine.retrieval import with_history

from .bench_dense import product_rate
from .record import RUNS, record, recorded
from .sequence_data import BEAUTY, amazon_beauty, movielens_1m

SPEED: dict[str, Any] = {"width": 64, "blocks": 2, "heads": 1, "length": 200, "dropout": 0.1}
PEER = Path(__file__).resolve().parents[1] / ".cache" / "rectools" / "bin" / "python"
MINUTES = float(os.environ.get("AFFINAX_BENCH_MINUTES", 55))  # a run stops then, to be taken up again


def measured(model: Any, known: Sequences, test: Interactions) -> dict[str, float]:
    """HR@10 and NDCG@10 of the items after these sequences."""
    seen = known.interactions()
    found = evaluate(with_history(model, known), test, train=seen, k=10, names=("hit_rate", "ndcg"))
    return {name: float(np.mean(values)) for name, values in found.values.items()}


def trained(
    name: str,
    algorithm: Any,
    x: Sequences,
    *,
    epochs: int,
    every: int | None = None,
    patience: int | None = None,
    seed: int = 0,
) -> None:
    """Trains on all but the last of each user, tests on these, and records it with the curve.

    With `every`, all but the last two are trained on, the last but one validates after so many epochs, and what does
    best there is tested.
    """
    known, test = x.leave_last()
    train, validation = known.leave_last() if every else (known, None)
    steps = algorithm.batches(train, np.zeros(2, np.uint32)).steps(1)
    run, began = RUNS / name.replace(" ", "-"), time.perf_counter()
    curve: list[dict[str, float]] = recorded("sequences", f"{name}, curve so far") or [] if run.exists() else []
    before = curve[-1]["minutes"] if curve else 0.0

    def validate(model: Any) -> float:
        found = measured(model, train, validation)
        curve.append({"minutes": before + (time.perf_counter() - began) / 60} | found)
        record("sequences", {f"{name}, curve so far": curve})
        return found["ndcg_at_10"]

    chosen = {"validate": validate, "validate_every": every * steps, "patience": patience} if every else {}
    model, history = fit(
        algorithm,
        train,
        key=jax.random.key(seed),
        epochs=epochs,
        checkpoint=run,
        checkpoint_every=(every or 10) * steps,
        callback=lambda *_: time.perf_counter() - began > 60 * MINUTES,
        progress=False,
        **chosen,
    )
    found = measured(model, known, test) | {
        "stopped by": history.stopped,
        "epochs": len(history.loss) / steps,
        "seconds an epoch": float(np.median(history.seconds)) * steps,
        "waiting for batches, share": history.waited / float(history.seconds.sum()),
    }
    if history.validation is None:
        begins = range(0, len(history.loss), steps)
        found["loss of each epoch"] = [float(np.mean(history.loss[begin : begin + steps])) for begin in begins]
    else:
        found["validation ndcg_at_10"] = history.validation.tolist()
        found["validated after epochs"] = (np.asarray(history.validated) / steps).tolist()
    record("sequences", {name: found})


def test_hstu_on_movielens():
    """By the second protocol: all items, no validation item, a fixed number of epochs.

    The softmax is over all items, where the published one has 128 random ones for each place.
    """
    options = {"temperature": 0.05, "batch_size": 69, "times": True}
    algorithm = models.sequence_retriever(models.HSTU, width=50, blocks=2, length=200, dropout=0.2, **options)
    trained("HSTU on ML-1M", algorithm, movielens_1m(least=1), epochs=101)


def test_bert4rec_on_movielens():
    algorithm = models.sequence_retriever(models.BERT4Rec, width=64, blocks=2, heads=2, length=200, batch_size=69)
    trained("BERT4Rec on ML-1M", algorithm, movielens_1m(), epochs=300, every=5, patience=8)


def test_gsasrec_on_movielens():
    options = {"loss": "gbce", "negatives": 256, "calibration": 0.75, "batch_size": 69}
    algorithm = models.sequence_retriever(models.SASRec, width=128, blocks=2, length=200, dropout=0.5, **options)
    trained("gSASRec on ML-1M", algorithm, movielens_1m(), epochs=300, every=5, patience=8)


@pytest.mark.parametrize(("name", "seed"), [("SASRec on ML-1M", 0), ("SASRec on ML-1M from another key", 1)])
def test_sasrec_on_movielens(name, seed):
    """Validations go up and down by .002 and rise by no more from the 66th epoch to the 180th: hence the patience."""
    algorithm = models.sequence_retriever(models.SASRec, width=64, blocks=2, heads=1, length=200, batch_size=69)
    trained(name, algorithm, movielens_1m(), epochs=200, every=3, patience=40, seed=seed)


@pytest.mark.skipif(not BEAUTY.exists(), reason="Amazon Beauty is not here")
def test_sasrec_on_beauty():
    """With more dropout than on MovieLens, where users have met twenty times as much."""
    settings = {"width": 64, "blocks": 2, "heads": 1, "length": 50, "dropout": 0.5, "batch_size": 32}
    algorithm = models.sequence_retriever(models.SASRec, **settings)
    trained("SASRec on Beauty", algorithm, amazon_beauty(), epochs=100, every=4, patience=3)


def test_an_epoch_against_its_arithmetic():
    """Training of SASRec beside its matrix products alone, at the rate of a large one: forward, and back to both sides.

    They are those of the events, and in attention of each with those before it.
    """
    train, _ = movielens_1m().leave_last()
    algorithm = models.sequence_retriever(models.SASRec, batch_size=69, **SPEED)
    steps = algorithm.batches(train, np.zeros(2, np.uint32)).steps(1)
    model, history = fit(algorithm, train, key=jax.random.key(0), epochs=4, progress=False)
    seconds = float(np.median([history.seconds[k * steps : (k + 1) * steps].sum() for k in (1, 2, 3)]))
    lengths = np.minimum(train.lengths - 1, SPEED["length"])
    blocks = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.network.encoder.blocks)) if leaf.ndim == 2)
    of_events = lengths.sum() * (blocks + SPEED["width"] * train.n_items)
    of_pairs = (lengths * (lengths + 1) / 2).sum() * 2 * SPEED["width"] * SPEED["blocks"]
    alone = 3 * 2 * float(of_events + of_pairs) / product_rate()
    found = {"seconds an epoch": seconds, "its products at the rate of a large one, s": alone, "times": seconds / alone}
    record("sequences", {"SASRec on ML-1M, an epoch against its arithmetic": found})


@pytest.mark.skipif(not PEER.exists(), reason="RecTools is not in .cache/rectools; see sequence_peer.py")
def test_speed(tmp_path):
    """Epochs of one model in turns: 128 users a batch, whose rows are padded to 200 or packed; the peer pads them.

    Our first epoch is left out: it compiles.
    """
    x = movielens_1m()
    train, _ = x.leave_last()
    np.savez(tmp_path / "events.npz", users=train.users, items=train.items)
    found: dict[str, list[float]] = {}

    def ours(layout: str, batch_size: int) -> None:
        algorithm = models.sequence_retriever(models.SASRec, layout=layout, batch_size=batch_size, **SPEED)
        steps = algorithm.batches(train, np.zeros(2, np.uint32)).steps(1)
        _, history = fit(algorithm, train, key=jax.random.key(0), steps=2 * steps, progress=False)
        seconds = found.setdefault(f"affinax, {layout}, {batch_size} rows", [])
        seconds.append(float(history.seconds[steps:].sum()))

    def theirs(threads: int) -> None:
        asked = {"events": str(tmp_path / "events.npz"), "threads": threads, "epochs": 1, "batch_size": 128, **SPEED}
        told = subprocess.run(
            [PEER, Path(__file__).with_name("sequence_peer.py")],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=True,
        )
        name = f"RecTools, padded, 128 rows, {threads} threads"
        found.setdefault(name, []).append(json.loads(told.stdout.splitlines()[-1])["seconds"][-1])

    for _ in range(3):
        ours("packed", 69)
        ours("padded", 128)
        theirs(2)
    users = int((train.lengths > 1).sum())
    medians = {name: float(np.median(seconds)) for name, seconds in found.items()}
    fastest = min(seconds for name, seconds in medians.items() if name.startswith("RecTools"))
    record(
        "sequences",
        {
            "SASRec on ML-1M, speed": {
                "seconds an epoch": medians,
                "users a second": {name: users / seconds for name, seconds in medians.items()},
                "times RecTools": {n: fastest / s for n, s in medians.items() if not n.startswith("RecTools")},
            }
        },
    )
