"""What the command line's options mean."""

from __future__ import annotations

import ast
import fnmatch
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np
import typer

from .algorithms import checked_parameters, parameters_of
from .engine.data import Interactions, Sequences, read_interactions, read_sequences, read_side_table
from .engine.training import Trial
from .kernels.quantized_rows import Kind
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
    for target, parameter, text in _assigned("--set", settings, algorithms):
        parsed[target][parameter] = _value(text)
    return {target: checked_parameters(target, values) for target, values in parsed.items()}


def parse_grid(settings: Sequence[str], algorithms: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Values to try for each parameter of each algorithm, from `l2=0.001,0.01` or `implicit-als.rank=32,64`.

    Raises:
        ValueError: As `parse_settings`, or a grid of "epochs", which a search finds by itself.

    >>> parse_grid(["rank=8,16", "ease.l2=100"], ["implicit-als", "ease"])
    {'implicit-als': {'rank': [8, 16]}, 'ease': {'l2': [100]}}
    """
    grid: dict[str, dict[str, list[Any]]] = {algorithm: {} for algorithm in algorithms}
    for target, parameter, text in _assigned("--grid", settings, algorithms):
        if parameter == "epochs":
            raise ValueError(
                "--grid epochs: the best number of epochs is found for each trial; --epochs says how many at most"
            )
        tried = [checked_parameters(target, {parameter: _value(part)})[parameter] for part in text.split(",")]
        grid[target][parameter] = tried
    return grid


def _assigned(option: str, settings: Sequence[str], algorithms: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """`(algorithm, parameter, text)` of settings such as `rank=64`, for all that have it, or `bpr.rank=64`."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name or not text:
            raise ValueError(f"{option} {setting!r} must be name=value")
        algorithm, dot, parameter = name.rpartition(".")
        if dot and algorithm not in algorithms:
            raise ValueError(f"{option} {setting!r} is for {algorithm!r}; the algorithms here are {list(algorithms)}")
        targets = [algorithm] if dot else [a for a in algorithms if parameter in parameters_of(a)]
        if not targets:
            have = "; ".join(f"{a} has {sorted(parameters_of(a)) or 'none'}" for a in algorithms)
            raise ValueError(f"{option} {setting!r}: no algorithm here has the parameter {parameter!r}. {have}")
        for target in targets:
            yield target, parameter, text


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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
    like: Interactions | Sequences | None = None,
    user_features: Path | None = None,
    item_features: Path | None = None,
) -> Interactions:
    """Reads a file, and its side tables, and says what was found; `like` gives the vocabularies of an earlier one."""
    options: dict[str, Any] = {"columns": None if columns is None else parse_columns(columns), "missing": missing}
    if like is not None:
        options |= {"user_ids": like.user_ids, "item_ids": like.item_ids, "unknown": "drop"}
    tables, ids = _side_tables({"user": user_features, "item": item_features})
    x = replace(read_interactions(path, header=header, duplicates=duplicates, **(options | ids)), **tables)
    _say(path, x)
    return x


def read_training_file(
    path: Path,
    columns: str | None,
    header: bool | None,
    missing: str,
    duplicates: str,
    user_features: Path | None = None,
    item_features: Path | None = None,
) -> Interactions | Sequences:
    """As `read_file`; where duplicates are kept, sequences."""
    if duplicates != "keep":
        return read_file(path, columns, header, missing, duplicates, None, user_features, item_features)
    if user_features:
        raise ValueError("--user-features and --duplicates keep: sequences have a table of their items alone")
    tables, ids = _side_tables({"item": item_features})
    named = None if columns is None else parse_columns(columns)
    x = replace(read_sequences(path, columns=named, header=header, missing=missing, **ids), **tables)
    _say(path, x)
    return x


def _side_tables(files: dict[str, Path | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of a side by `side_features`, and the ids of their rows by `side_ids`."""
    read = {side: read_side_table(file, side) for side, file in files.items() if file is not None}
    tables = {f"{side}_features": table for side, (_, table) in read.items()}
    return tables, {f"{side}_ids": ids for side, (ids, _) in read.items()}


def _say(path: Path, x: Interactions | Sequences) -> None:
    times = ""
    if x.timestamps is not None:
        first, last = (_day(t) for t in (x.timestamps.min(), x.timestamps.max()))
        times = f", {first} to {last}"
    notes = "; ".join(x.notes) or "nothing left out or merged"
    typer.echo(f"{path.name}: {len(x.items):,} rows, {x.n_users:,} users, {x.n_items:,} items{times}; {notes}")


@overload
def split_file(x: Interactions, how: str, seed: int, purpose: str = ...) -> tuple[Interactions, Interactions]: ...


@overload
def split_file(
    x: Interactions | Sequences, how: str, seed: int, purpose: str = ...
) -> tuple[Interactions | Sequences, Interactions]: ...


def split_file(
    x: Interactions | Sequences, how: str, seed: int, purpose: str = "test"
) -> tuple[Interactions | Sequences, Interactions]:
    """Splits interactions and says how, and what the second part is for; see `Interactions.split`."""
    if isinstance(x, Sequences):
        cuts = {"leave-last": x.leave_last, "time": x.split_at_time}
        if how not in cuts:
            raise ValueError(f"--split {how}: sequences, of --duplicates keep, are split by one of {sorted(cuts)}")
        train, test = cuts[how]()
        typer.echo(f"{'; '.join(train.notes)}: {len(train):,} events to train on, {test.nnz:,} pairs to {purpose}")
        return train, test
    train, test = x.split(how, **({"seed": seed} if how == "random" else {}))
    if how == "time" and train.timestamps is not None:
        said = f"split at {_day(train.timestamps.max())}: {train.nnz:,} interactions before, {test.nnz:,} after"
    else:
        said = f"{test.notes[-1].removeprefix('test part, ')}: {train.nnz:,} to train on, {test.nnz:,} to {purpose}"
    typer.echo(said)
    return train, test


def fit_command(
    file: Path, best: Trial, reading: Mapping[str, str | None], header: bool | None, seed: int, out: str = "model"
) -> str:
    """The command line that fits the best trial of a search on the whole file, read as it was."""
    settings = best.parameters | ({"epochs": best.step} if best.step else {})
    words = ["python", "-m", "affinax", "fit", str(file), "--algorithm", best.algorithm]
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    words += [word for name, value in reading.items() if value not in (None, "error") for word in (name, value)]
    words += [] if header is None else ["--header" if header else "--no-header"]
    words += ["--seed", str(seed)] if seed else []
    return shlex.join([*words, "--out", out])


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


def storage_rules(int8: bool, int4: bool, rules: Sequence[str]) -> dict[str, Any]:
    """What `quantize_model` takes: `--rule`s first, then bytes or half bytes for the rest.

    Raises:
        ValueError: Both of these, a rule of another form, or two for one pattern.

    >>> storage_rules(True, False, ["*.table=int4"])
    {'*.table': 'int4', '*': 'int8'}
    """
    if int8 and int4:
        raise ValueError("give either --int8 or --int4; --rule PATTERN=KIND tells parameters apart")
    found: dict[str, Any] = {}
    for rule in rules:
        pattern, equals, kind = rule.rpartition("=")
        if not equals or not pattern:
            raise ValueError(f"--rule {rule!r} must be pattern=kind, such as *.table=int4")
        if kind not in get_args(Kind):
            raise ValueError(f"--rule {rule!r}: the kind must be one of {get_args(Kind)}; --pq is for products")
        if pattern in found:
            raise ValueError(f"--rule {rule!r}: {pattern!r} has the rule {found[pattern]} already")
        found[pattern] = kind
    return found | ({"*": "int8" if int8 else "int4"} if int8 or int4 else {})


def compressed(
    model: Any,
    rules: dict[str, Any],
    *,
    pq: int | None,
    dynamic: bool,
    clip: bool,
    calibrate: bool,
    prune: float | None,
    rank: int | None,
    seed: int,
) -> Any:
    """A model truncated, pruned and quantized, as far as each is asked for."""
    import jax

    from .engine import compression
    from .engine.compression.parameters import tables_of
    from .models import inputs_of_layers

    if rank is not None:
        model = compression.truncate(model, rank)
    if prune is not None:
        model = compression.prune(model, prune)
    if pq is not None:
        shapes = {name: table.shape for name, table in tables_of(model).items()}
        # 256 centroids and a byte a part, which a table of few rows is smaller than.
        smaller = [name for name, (n, width) in shapes.items() if n * pq + 4 * min(n, 256) * width < 4 * n * width]
        fitting = {name: ("product", pq) for name in smaller if shapes[name][1] % pq == 0}
        if not fitting:
            sizes = ", ".join(f"{name} {n:,} x {width}" for name, (n, width) in shapes.items())
            raise ValueError(f"--pq {pq} must divide the columns of a table that is smaller by it: there are {sizes}")
        others = {pattern: kind for pattern, kind in rules.items() if pattern != "*"}
        free = [name for name in fitting if not any(fnmatch.fnmatchcase(name, pattern) for pattern in others)]
        if not free:
            raise ValueError(f"--pq {pq}: the rules take every table that it fits, {', '.join(fitting)}")
        rules = others | {name: fitting[name] for name in free} | rules
    if not rules:
        return model
    how: dict[str, Any] = {"clip": "search" if clip else "none", "activations": "dynamic" if dynamic else "float"}
    if calibrate:
        how |= {"rounding": "inputs", "inputs": inputs_of_layers(model)}
    return compression.quantize_model(model, rules, key=jax.random.key(seed), **how)
