"""Trained models made smaller: bytes, time of an answer, and what it costs in quality, on held-out data.

SASRec on ML-1M is taken from `.runs/`, where `bench_sequences.py::test_sasrec_on_movielens` leaves it; what is trained
on, is so on all but the last two items of each user, of which the first validates and the second tests.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affinax import models
from affinax.engine.compression import (
    Bill,
    compare,
    keep_zeros,
    prune,
    prune_gradually,
    quantize_model,
    rounded,
    zeros_of,
)
from affinax.engine.compression.comparing import memory_of
from affinax.engine.data import Interactions, Sequences
from affinax.engine.evaluation import evaluate
from affinax.engine.factorization import fit
from affinax.engine.retrieval import recommend, with_history

from .measure import take_turns
from .record import RUNS, record
from .sequence_data import BEAUTY, amazon_beauty, movielens_1m

MOVIELENS = {"length": 200, "batch_size": 69, "dropout": 0.1}
ON_BEAUTY = {"length": 50, "batch_size": 32, "dropout": 0.5}
HELD = optax.chain(optax.adam(1e-3), keep_zeros())


def whole_model(name: str = "SASRec on ML-1M", seed: int = 0) -> tuple[Any, Sequences, Sequences, Interactions]:
    """SASRec as it was trained, and the parts: to train on, to know when testing, to test."""
    known, test = movielens_1m().leave_last()
    run = name.replace(" ", "-")
    if not (RUNS / run).exists():
        pytest.skip("bench_sequences.py::test_sasrec_on_movielens has to be run before")
    model, *_ = trained_anew(run, known, MOVIELENS, epochs=200, every=3, patience=40, seed=seed)
    return model, known.leave_last()[0], known, test


def trained_anew(
    run: str, known: Sequences, settings: Any, *, epochs: int, every: int, patience: int, seed: int = 0
) -> tuple[Any, Any, int]:
    """SASRec, the best by validation after each so many epochs; how training went; and the steps of an epoch."""
    train, validation = known.leave_last()
    algorithm = models.sequence_retriever(models.SASRec, **settings)
    steps = algorithm.batches(train, np.zeros(2, np.uint32)).steps(1)
    model, history = fit(
        algorithm,
        train,
        key=jax.random.key(seed),
        epochs=epochs,
        checkpoint=RUNS / run,
        checkpoint_every=every * steps,
        validate=validator(train, validation),
        validate_every=every * steps,
        patience=patience,
        progress=False,
    )
    return model, history, steps


def validator(train: Sequences, validation: Interactions) -> Any:
    """NDCG@10 of what comes after the training part."""
    seen = train.interactions()

    def validate(model: Any) -> float:
        found = evaluate(with_history(model, train), validation, train=seen, k=10, names=("ndcg",))
        print(found.means, flush=True)
        return found.means["ndcg_at_10"]

    return validate


def trained_on(
    model: Any,
    parts: Any,
    optimizer: Any,
    epochs: int,
    settings: Any = MOVIELENS,
    rules: Any = None,
    patience: int = 4,
) -> Any:
    """A model after some epochs more, of which the best by validation counts; by `rules` in fewer bits."""
    kept, validation = parts
    view = None if rules is None else rounded(rules)
    algorithm = models.sequence_retriever(models.SASRec, **settings, optimizer=optimizer, view=view)
    steps = algorithm.batches(kept, np.zeros(2, np.uint32)).steps(1)
    score = validator(kept, validation)

    def validate(model: Any) -> float:
        return score(model if rules is None else quantize_model(model, rules))

    own = {"validate": validate, "validate_every": 3 * steps, "patience": patience, "progress": False}
    return fit(algorithm, kept, key=jax.random.key(1), epochs=epochs, state=model, **own)[0]


def bills(named: dict[str, Any], known: Sequences, test: Interactions) -> dict[str, Any]:
    """What each takes and gives, beside the first."""
    with_known = {name: with_history(model, known) for name, model in named.items()}
    found = compare(with_known, test, train=known.interactions(), k=10, names=("ndcg", "hit_rate"))
    return {bill.name: described(bill, found[0]) for bill in found}


def bills_with_zeros(named: dict[str, Any], known: Sequences, test: Interactions) -> dict[str, Any]:
    """The same, and the least and the most zeros among the arrays of each."""
    found = bills(named, known, test)
    for name, one in named.items():
        shares = zeros_of(one)
        found[name]["zeros of each"] = {"least": min(shares.values()), "most": max(shares.values())}
    return found


def described(bill: Bill, first: Bill) -> dict[str, Any]:
    shares = {"bytes": bill.memory, "share of the bytes": bill.memory / first.memory, "bytes on disk": bill.disk}
    means = bill.evaluation.means
    change = {f"{name}, change": list(bill.changes[name]) for name in means}
    relative = {f"{name}, change in %": 100 * bill.changes[name][0] / first.evaluation.means[name] for name in means}
    return shares | means | change | relative


def test_sasrec_in_fewer_bits():
    model, train, known, test = whole_model()
    inputs = models.inputs_of_layers(with_history(model, train))
    rounding: dict[str, Any] = {"clip": "search", "rounding": "inputs", "inputs": inputs}
    table, rest = "items.embedding.table", "*.kernel"
    named = {
        "float32": model,
        "table int8": quantize_model(model, {table: "int8"}, clip="search"),
        "table int4": quantize_model(model, {table: "int4"}, clip="search"),
        "table int4 by queries": quantize_model(model, {table: "int4"}, **rounding),
        "all bfloat16": quantize_model(model, "bfloat16"),
        "all float8": quantize_model(model, "float8"),
        "all int8": quantize_model(model, "int8", clip="search"),
        "all int8, computed in bytes by the greatest of each row": quantize_model(
            model, "int8", clip="search", activations="dynamic"
        ),
        "all int8, computed in bytes by what was seen": quantize_model(
            model, "int8", clip="search", activations="static", inputs=inputs
        ),
        "table int8, layers int4": quantize_model(model, {table: "int8", rest: "int4"}, clip="search"),
        "table int8, layers int4 by inputs": quantize_model(model, {table: "int8", rest: "int4"}, **rounding),
        "all int4 by inputs": quantize_model(model, {table: "int4", rest: "int4"}, **rounding),
        "table in products of 8 parts, afterwards": quantize_model(model, {table: ("product", 8)}),
    }
    record("compressed_models", {"SASRec on ML-1M in fewer bits": bills(named, known, test)})


def test_sasrec_trained_in_fewer_bits():
    """Half bytes that training knows of."""
    model, _, known, test = whole_model()
    rules = {"items.embedding.table": "int4", "*.kernel": "int4"}
    named = {"whole": model}
    for name, own in {"table": {"items.embedding.table": "int4"}, "all": rules}.items():
        seen = trained_on(model._replace(training=None), known.leave_last(), optax.adam(3e-4), 24, rules=own)
        named |= {f"{name} int4, trained so": quantize_model(seen, own)}
    record("compressed_models", {"SASRec on ML-1M trained in fewer bits": bills(named, known, test)})


def pruned_gradually(
    model: Any, known: Sequences, share: Any, settings: Any = MOVIELENS, begin: int = 0, end: int = 12, after: int = 12
) -> Any:
    """Ever more weights become 0 between these epochs of training; of some after it the best by validation counts.

    Without a model from the start.
    """
    parts = known.leave_last()
    steps = models.sequence_retriever(models.SASRec, **settings).batches(parts[0], np.zeros(2, np.uint32)).steps(1)
    gradual = prune_gradually(share, begin=begin * steps, end=end * steps, every=steps // 2)
    algorithm = models.sequence_retriever(models.SASRec, **settings, optimizer=optax.chain(optax.adam(1e-3), gradual))
    state = None if model is None else model._replace(training=None)
    pruned, _ = fit(algorithm, parts[0], key=jax.random.key(2), epochs=end, state=state, progress=False)
    return trained_on(pruned._replace(training=None), parts, HELD, after, settings, patience=after // 3)


def test_sasrec_pruned():
    """80 % of all tables and layers: at once, and over 12 epochs of training; each trained on for 12 more."""
    model, _, known, test = whole_model()
    named = {"whole": model, "80 % at once": prune(model, 0.8)}
    named["80 % at once, trained on"] = trained_on(named["80 % at once"], known.leave_last(), HELD, 12)
    named["80 % over 12 epochs, trained on"] = pruned_gradually(model, known, 0.8)
    found = bills_with_zeros(named, known, test)
    record("compressed_models", {"SASRec on ML-1M pruned": found})


def test_wide_sasrec_pruned_from_the_start():
    """80 % of one 128 wide, made in the first half of 90 epochs, beside a whole one that ends early by validation."""
    known, test = movielens_1m().leave_last()
    settings = MOVIELENS | {"width": 128}
    named = {"whole": trained_anew("ML-1M-128-wide", known, settings, epochs=90, every=3, patience=10)[0]}
    named["80 % from the start"] = pruned_gradually(None, known, 0.8, settings, begin=5, end=45, after=45)
    found = bills_with_zeros(named, known, test)
    record("compressed_models", {"SASRec on ML-1M, 128 wide, pruned from the start": found})


def test_sasrec_layers_pruned():
    """80 % of the dense layers alone."""
    model, _, known, test = whole_model()
    named = {"whole": model, "pruned": pruned_gradually(model, known, {"*.kernel": 0.8})}
    found = bills(named, known, test)
    found["pruned"]["zeros of each"] = zeros_of(named["pruned"])
    record("compressed_models", {"SASRec on ML-1M, 80 % of the layers pruned": found})


SMALLER: dict[str, Any] = {
    "heads half as wide": lambda model: models.shrink(model, head_width=32),
    "half the neurons and head widths": lambda model: models.shrink(model, hidden=32, head_width=32),
    "one block of two": lambda model: models.shrink(model, blocks=1),
    "blocks shared": models.share_blocks,
}


@pytest.mark.parametrize("name", SMALLER)
def test_sasrec_smaller(benchmark, name):
    """Fewer neurons, heads of less width, fewer or shared blocks: trained on, and timed beside the whole one."""
    model, _, known, test = whole_model()
    smaller = trained_on(SMALLER[name](model), known.leave_last(), optax.adam(1e-3), 24)
    named = {"whole": model, name: smaller}
    found = bills(named, known, test)
    users = jnp.arange(256, dtype=jnp.int32)
    calls = {}
    for which, one in named.items():
        answering = with_history(one, known)
        calls[which] = lambda answering=answering: jax.block_until_ready(recommend(answering, users, 10))
    seconds = take_turns(benchmark, calls, rounds=15)
    for which, one in named.items():
        found[which]["seconds for 256 users"] = seconds[which]
        found[which]["times as fast"] = seconds["whole"] / seconds[which]
        found[which]["bytes of the blocks"] = sum(a.nbytes for a in jax.tree.leaves(one.network.encoder.blocks))
    record("compressed_models", {f"SASRec on ML-1M, {name}": found})


TABLES: dict[str, dict[str, Any]] = {
    "a row each": {},
    **{f"{kind}, {ratio}x": {"sharing": (kind, ratio)} for kind in ("hashed", "quotient") for ratio in (4, 16, 64)},
    "products of 8 parts, 128 codes": {"products": (8, 128)},
}
each_table = pytest.mark.parametrize("name", TABLES)


needs_beauty = pytest.mark.skipif(not BEAUTY.exists(), reason="Amazon Beauty is not there")


def on_beauty(name: str, known: Sequences, epochs: int = 24, **options: Any) -> tuple[Any, Any, int]:
    """SASRec with one of `TABLES`, how training went, and the steps of an epoch."""
    run = f"beauty-{name}".replace(" ", "-")
    return trained_anew(run, known, ON_BEAUTY | options, epochs=epochs, every=4, patience=3)


def wide_on_beauty(known: Sequences) -> Any:
    """It is at its best after half as many epochs, each of which takes five times as long."""
    return on_beauty("256 wide", known, 16, width=256)[0]


@needs_beauty
def test_sasrec_on_beauty_pruned_from_the_start():
    """80 %, between the second and the tenth epoch of all."""
    known, test = amazon_beauty().leave_last()
    named = {"whole": wide_on_beauty(known)}
    named["80 % from the start"] = pruned_gradually(None, known, 0.8, ON_BEAUTY | {"width": 256}, begin=2, end=10)
    found = bills_with_zeros(named, known, test)
    record("compressed_models", {"SASRec on Beauty, 256 wide, pruned from the start": found})


@needs_beauty
@pytest.mark.parametrize("width", [64, 256])
def test_sasrec_on_beauty_pruned(width):
    """80 % of its table and layers, and 64 wide, where there is nothing to spare, the same training without."""
    known, test = amazon_beauty().leave_last()
    wide = {} if width == 64 else {"width": width}
    model = wide_on_beauty(known) if wide else on_beauty("a row each", known)[0]
    named, settings = {"whole": model}, ON_BEAUTY | wide
    named["80 % over 12 epochs, trained on"] = pruned_gradually(model, known, 0.8, settings)
    if not wide:
        start = model._replace(training=None)
        named["trained on"] = trained_on(start, known.leave_last(), optax.adam(1e-3), 24, settings)
    found = bills_with_zeros(named, known, test)
    record("compressed_models", {f"SASRec on Beauty, {width} wide, pruned": found})


@needs_beauty
def test_several_in_fewer_bits():
    """Of two keys on ML-1M and two widths on Beauty: one model's interval is wider than what bits change."""
    known, test = amazon_beauty().leave_last()
    beauty = (on_beauty("a row each", known)[0], wide_on_beauty(known))
    (one, _, *parts), (other, *_) = whole_model(), whole_model("SASRec on ML-1M from another key", 1)
    table, layers, result = "items.embedding.table", "*.kernel", {}
    for name, (rules, by_inputs) in {
        "int8": ({table: "int8"}, False),
        "int4": ({table: "int4"}, False),
        "int4 by queries": ({table: "int4"}, True),
        "layers int4": ({layers: "int4"}, False),
        "layers int4 by inputs": ({layers: "int4"}, True),
    }.items():
        how = {"rules": rules, "by_inputs": by_inputs}
        found = {
            "ML-1M, two keys": [shrunk(model, *parts, **how) for model in (one, other)],
            "Amazon Beauty, 64 and 256 wide": [shrunk(model, known, test, **how) for model in beauty],
        }
        sets = {where: [changes for _, changes in each] for where, each in found.items()}
        means = {where: np.mean(changes, axis=0) for where, changes in sets.items()}  # of each user
        half = {where: interval(values) for where, values in means.items()}
        result[name] = {
            "share of all bytes": {where: [share for share, _ in each] for where, each in found.items()},
            "NDCG@10, change in %": {
                where: [float(np.mean(each)) for each in changes] for where, changes in sets.items()
            },
            "mean": {where: float(values.mean()) for where, values in means.items()},
            "half of its 95 % interval": half,
            "mean of all": float(np.mean([values.mean() for values in means.values()])),
            "half of the 95 % interval of all": float(np.hypot(*half.values()) / 2),
        }
    record("compressed_models", {"four SASRec in fewer bits": result})


def shrunk(
    model: Any, known: Sequences, test: Interactions, *, rules: Any, by_inputs: bool
) -> tuple[float, np.ndarray]:
    """What is left of the bytes where what the rules choose is stored so, and each user's change of NDCG@10 in %."""
    knowing = with_history(model, known)
    how: dict[str, Any] = {"rounding": "inputs", "inputs": models.inputs_of_layers(knowing)} if by_inputs else {}
    small = quantize_model(knowing, rules, clip="search", **how)
    before, after = (
        evaluate(each, test, train=known.interactions(), k=10, names=("ndcg",)).values["ndcg_at_10"]
        for each in (knowing, small)
    )
    return memory_of(small) / memory_of(knowing), 100 * (after - before) / before.mean()


@needs_beauty
@each_table
def test_tables_of_sasrec_on_beauty(name):
    """Vectors of items that share rows or are put together from parts, from the first step on."""
    known, test = amazon_beauty().leave_last()
    model, history, steps = on_beauty(name, known, **TABLES[name])
    table = model.network.items
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(table))
    codes = 0 if model.modalities is None else model.modalities.inputs["codes"].nbytes
    found = evaluate(with_history(model, known), test, train=known.interactions(), k=10, names=("ndcg", "hit_rate"))
    whole = known.n_items * table.width * 4
    result = {"bytes of the table": size + codes, "times smaller": whole / (size + codes), **found.means}
    result |= {"epochs": len(history.loss) / steps, "stopped by": history.stopped}
    result |= {"ndcg_at_10, half of the 95 % interval": interval(found.values["ndcg_at_10"])}
    record("compressed_models", {f"SASRec on Beauty, {name}": result})


def interval(values: np.ndarray) -> float:
    return float(1.96 * values.std(ddof=1) / len(values) ** 0.5)
