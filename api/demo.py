"""`python -m affinax demo`: the main job on real data, end to end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from .comparison import Result, compare
from .datasets import movielens
from .engine.data import Interactions, clean
from .options import split_file
from .recommender import Recommender
from .reporting import COLORS, draw_metrics, new_figure, print_comparison, print_frame, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Chosen on a validation part of the training part.
_SETTINGS = {"implicit-als": {"rank": 32, "l2": 0.003, "unobserved_weight": 1.0}}
# A movie of several genres counts as the first of them in this order.
_GENRES = ("Children's", "Horror", "Sci-Fi", "Action", "Romance", "Comedy")
_NEWCOMER = ["Alien (1979)", "Fargo (1996)"]


def run(out: Path, seed: int = 0) -> None:
    """Clean, split by time, train, compare with popularity, recommend, draw and save."""
    import polars as pl

    console, began = Console(highlight=False), time.perf_counter()
    ratings = clean(movielens("100k"))
    console.print(
        f"MovieLens 100K: {ratings.nnz:,} ratings of {ratings.n_items:,} movies by {ratings.n_users:,} people"
    )
    console.print("who rates a movie chose to see it: each rating counts, whatever its stars")
    train, test = split_file(ratings.with_values(None), "time", seed)
    results = compare(["popularity", "implicit-als"], train, test, seed=seed, parameters=_SETTINGS)
    print_comparison(results)

    recommender = results[-1].recommender
    user, titles = _someone(train, test), recommender.item_ids.names
    user_id = recommender.user_ids.outside([user])[0].item()
    met, later = _by_time(train, user), recommender.item_ids.outside(test.items_of(user))
    console.print(f"\nUser {user_id} rated {len(met)} movies before the split, the last ones of them")
    for title in titles(met[-6:]):
        console.print(f"  {title}")
    console.print(f"and {len(later)} after it. Recommended, from what was known before:")
    frame = recommender.recommend(user_id, k=10)
    print_frame(frame.with_columns(pl.Series("rated later", np.where(np.isin(frame["item"], later), "yes", ""))))
    console.print(f"Someone new, who has seen {' and '.join(_NEWCOMER)}; nothing is trained again:")
    print_frame(recommender.recommend(history=_NEWCOMER, k=5))

    recommender.save(out / "model")
    _draw(results, out / "demo.png")
    console.print(f"wrote {out / 'demo.png'} and {out / 'model'} ({time.perf_counter() - began:.0f} s in all)")
    console.print(f"next: python -m affinax recommend {out / 'model'} --user {user_id}")


def _someone(train: Interactions, test: Interactions) -> int:
    """The first user with enough on both sides of the split to be worth looking at."""
    enough = (np.diff(train.indptr) >= 20) & (np.diff(test.indptr) >= 10)
    return int(np.argmax(enough))


def _by_time(x: Interactions, user: int) -> np.ndarray:
    """Items of a user, the latest last."""
    items = x.items_of(user)
    if x.timestamps is None:
        return items
    return items[np.argsort(x.timestamps[x.indptr[user] : x.indptr[user + 1]], kind="stable")]


def _draw(results: Sequence[Result], path: Path) -> None:
    """Learning curve and metrics, and beside them the movies as the model sees them."""
    figure = new_figure(14, 7.5)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 2))
    recommender = results[-1].recommender
    axes = figure.add_subplot(grid[0, 0])
    if recommender.history is not None:
        loss = recommender.history.loss / recommender.history.loss[-1]
        axes.plot(np.arange(1, len(loss) + 1), loss, color=COLORS[1], marker="o", markersize=4)
    axes.set_title(f"Learning curve of {recommender.algorithm}", loc="left", fontsize=10)
    axes.set(xlabel="sweep", ylabel="loss, as a multiple of the last")
    draw_metrics(figure.add_subplot(grid[1, 0]), results)
    _draw_map(figure.add_subplot(grid[:, 1]), recommender)
    figure.suptitle("affinax on MovieLens 100K: trained on the first 80 % of the ratings, tested on the rest")
    save_figure(figure, path)


def _draw_map(axes: Axes, recommender: Recommender, n_shown: int = 300, n_labels: int = 45) -> None:
    """The most rated movies at the two main directions of their vectors, coloured by genre."""
    from matplotlib.patheffects import withStroke

    train, ids = recommender.train, recommender.item_ids
    counts = np.bincount(train.items, minlength=train.n_items)
    shown = np.argsort(-counts, kind="stable")[:n_shown]
    vectors = np.asarray(recommender.model.items)[shown]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors -= vectors.mean(axis=0)
    places = vectors @ np.linalg.svd(vectors, full_matrices=False)[2][:2].T
    genres = [] if train.item_features is None else train.item_features["genres"][shown.tolist()].to_list()
    kinds = np.array([next((g for g in _GENRES if g in movie), "other") for movie in genres])
    for kind, color in zip((*_GENRES, "other"), (*COLORS[1:], COLORS[0]), strict=True):
        of_kind = kinds == kind
        size = 12 + counts[shown][of_kind] / 3
        axes.scatter(*places[of_kind].T, s=size, color=color, alpha=0.75, linewidths=0, label=kind)
    taken: list[np.ndarray] = []
    reach = np.ptp(places, axis=0) * (0.13, 0.02)  # about the half size of a label
    for place, title in zip(places, ids.names(shown), strict=True):
        if len(taken) < n_labels and all((np.abs(place - other) > reach).any() for other in taken):
            taken.append(place)
            label = axes.annotate(title.rpartition(" (")[0], place, (4, 3), textcoords="offset points", fontsize=7)
            label.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axes.legend(frameon=False, loc="best", markerscale=0.8, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    title = f"The {n_shown} most rated movies, by their vectors alone: genres were never shown to the model"
    axes.set_title(title, loc="left", fontsize=10)
