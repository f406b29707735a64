"""What the command line's options mean."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from .algorithms import checked_parameters, parameters_of
from .engine.data import Interactions, read_interactions, read_side_table
from .recommender import Recommender


def parse_settings(settings: Sequence[str], algorithms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parameters of each algorithm from `rank=64` (for all that have it) or `implicit-als.rank=64` (for one).

    Raises:
        ValueError: A setting of another form, for an algorithm that is not asked for, that none of them has, or out
            of its range; or an unknown algorithm.

    >>> parse_settings(["rank=8", "implicit-als.l2=1e-3"], ["implicit-als", "popularity"])
    {'implicit-als': {'rank': 8, 'l2': 0.001}, 'popularity': {}}
    """
    parsed: dict[str, dict[str, Any]] = {algorithm: {} for algorithm in algorithms}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name or not text:
            raise ValueError(f"--set {setting!r} must be name=value")
        algorithm, dot, parameter = name.rpartition(".")
        if dot and algorithm not in parsed:
            raise ValueError(f"--set {setting!r} is for {algorithm!r}; the algorithms here are {list(algorithms)}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        targets = [algorithm] if dot else [a for a in algorithms if parameter in parameters_of(a)]
        if not targets:
            have = "; ".join(f"{a} has {sorted(parameters_of(a)) or 'none'}" for a in algorithms)
            raise ValueError(f"--set {setting!r}: no algorithm here has the parameter {parameter!r}. {have}")
        for target in targets:
            parsed[target][parameter] = value
    return {target: checked_parameters(target, values) for target, values in parsed.items()}


def parse_columns(text: str) -> dict[str, str | int] | list[str]:
    """Columns by name or position, `user=reader,item=2`, or roles in column order, `user,item,value,time`.

    >>> parse_columns("user=reader, item=2"), parse_columns("user,item")
    ({'user': 'reader', 'item': 2}, ['user', 'item'])
    """
    parts = [part.strip() for part in text.split(",")]
    if "=" not in text:
        return parts
    pairs = [part.partition("=") for part in parts]
    wrong = [part for part, (_, equals, name) in zip(parts, pairs, strict=True) if not equals or not name]
    if wrong:
        raise ValueError(f"--columns {text!r}: {wrong[0]!r} must be role=column, as the others are")
    return {role.strip(): int(name) if name.strip().isdigit() else name.strip() for role, _, name in pairs}


def read_file(
    path: Path,
    columns: str | None,
    header: bool | None,
    missing: str,
    duplicates: str,
    like: Interactions | None = None,
    user_features: Path | None = None,
    item_features: Path | None = None,
) -> Interactions:
    """Reads a file, and its side tables, and says what was found; `like` gives the vocabularies of an earlier one."""
    options: dict[str, Any] = {"columns": None if columns is None else parse_columns(columns), "missing": missing}
    if like is not None:
        options |= {"user_ids": like.user_ids, "item_ids": like.item_ids, "unknown": "drop"}
    tables: dict[str, Any] = {}
    for side, file in (("user", user_features), ("item", item_features)):
        if file is not None:
            options[f"{side}_ids"], tables[f"{side}_features"] = read_side_table(file, side)
    x = read_interactions(path, header=header, duplicates=duplicates, **options)
    x = replace(x, **tables)
    times = ""
    if x.timestamps is not None:
        first, last = (_day(t) for t in (x.timestamps.min(), x.timestamps.max()))
        times = f", {first} to {last}"
    notes = "; ".join(x.notes) or "nothing left out or merged"
    typer.echo(f"{path.name}: {x.nnz:,} rows, {x.n_users:,} users, {x.n_items:,} items{times}; {notes}")
    return x


def split_file(x: Interactions, how: str, seed: int) -> tuple[Interactions, Interactions]:
    """Splits interactions and says how; see `Interactions.split`."""
    train, test = x.split(how, **({"seed": seed} if how == "random" else {}))
    if how == "time" and train.timestamps is not None:
        said = f"split at {_day(train.timestamps.max())}: {train.nnz:,} interactions before, {test.nnz:,} after"
    else:
        said = f"{test.notes[-1].removeprefix('test part, ')}: {train.nnz:,} to train on, {test.nnz:,} to test"
    typer.echo(said)
    return train, test


def outside_ids(texts: Sequence[str], recommender: Recommender, side: str) -> list[Any]:
    """Ids as the vocabulary has them: the command line only knows text."""
    ids = recommender.user_ids if side == "user" else recommender.item_ids
    if ids.ids.dtype.kind != "i":
        return list(texts)
    return [int(text) if text.lstrip("-").isdigit() else text for text in texts]


def _day(time: Any) -> str:
    """The date of a Unix time in seconds, or the number where it cannot be one."""
    if 0 < time < 4e9:
        return str(np.datetime64(int(time), "s").astype("datetime64[D]"))
    return f"{time:g}"
