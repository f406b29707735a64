"""`python -m affinax demo`: the main job on real data, end to end."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from rich.console import Console

from .comparison import compare
from .datasets import movielens
from .recommender import Recommender
from .reporting import metrics_plot, print_comparison, print_frame


def run(out: Path, seed: int = 0) -> None:
    """Clean, split by time, train, compare with popularity, recommend, draw and save."""
    import polars as pl

    from .engine.data import clean

    console, began = Console(), time.perf_counter()
    ratings = movielens("100k")
    console.print(f"MovieLens 100K: {ratings.nnz:,} ratings, {ratings.n_users:,} users, {ratings.n_items:,} movies")
    liked = clean(ratings, min_value=4, min_per_user=5, min_per_item=5)
    console.print(f"liked (4 stars or 5), cleaned: {liked.nnz:,}; " + "; ".join(liked.notes))
    train, test = liked.with_values(None).split("time", fraction=0.2)
    console.print(f"{train.notes[-1]}: {train.nnz:,} before, {test.nnz:,} after")
    settings = {"implicit-als": {"rank": 32, "l2": 0.01, "unobserved_weight": 0.2}}
    results = compare(["popularity", "implicit-als"], train, test, seed=seed, parameters=settings)
    print_comparison(results)

    recommender = Recommender("implicit-als", seed=seed, **settings["implicit-als"]).fit(train, progress=False)
    tested = np.flatnonzero((np.diff(train.indptr) >= 10) & (np.diff(test.indptr) >= 5))
    user = int(tested[0])
    user_id = train.user_ids.ids[user].item()
    met, later = train.items_of(user), set(test.items_of(user).tolist())
    console.print(f"\nUser {user_id} liked {len(met)} movies before the split, among them:")
    for title in train.item_ids.names(met[:8]):
        console.print(f"  {title}", highlight=False)
    console.print("Recommended:")
    frame = recommender.recommend(user_id, k=10)
    found = [bool(train.item_ids.indices([item])[0] in later) for item in frame["item"]]
    print_frame(frame.with_columns(pl.Series("liked later", ["yes" if f else "" for f in found])))
    console.print("Someone new who liked Alien (1979) and Fargo (1996):")
    print_frame(recommender.recommend(history=["Alien (1979)", "Fargo (1996)"], k=5))

    out.mkdir(parents=True, exist_ok=True)
    recommender.save(out / "model")
    curve = recommender.history.loss / train.nnz
    metrics_plot(results, out / "demo.png", learning_curve=curve)
    console.print(f"wrote {out / 'demo.png'} and {out / 'model'} ({time.perf_counter() - began:.0f} s in all)")
    console.print(f"next: python -m affinax recommend {out / 'model'} --user {user_id}")
