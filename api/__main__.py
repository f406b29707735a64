"""The command line: `python -m affinax demo | fit | recommend | evaluate | tune | compress | doctor`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .engine.errors import DivergenceError
from .version import __version__

app = typer.Typer(
    help="Recommender systems on JAX: train, recommend, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

File = Annotated[
    Path, typer.Argument(help="Interactions: .csv, .tsv, .dat, .parquet, .jsonl, or one of these with .gz")
]
Columns = Annotated[
    str | None,
    typer.Option(help="What the columns are: by name, user=reader,item=book, or in their order, user,item,value,time"),
]
Header = Annotated[bool | None, typer.Option("--header/--no-header", help="Whether the first line names the columns")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A parameter, such as rank=64; repeatable")]
Seed = Annotated[int, typer.Option(help="Of all that is random")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON")]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="Length of a list")]
Missing = Annotated[str, typer.Option(help="Rows with missing values: error or drop")]
UserFeatures = Annotated[Path | None, typer.Option(help="Table with a row for each user, for algorithms that use it")]
ItemFeatures = Annotated[Path | None, typer.Option(help="Table with a row for each item, likewise")]
Repetitions = Annotated[
    str,
    typer.Option(help="Repeated pairs: error, last, sum or mean; or keep, for networks on sequences, which read them"),
]


def _version(shown: bool) -> None:
    if shown:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the trained model")] = Path("demo-output"),
    seed: Seed = 0,
) -> None:
    """MovieLens 100K from download to recommendations, in about a minute."""
    from .demo import run

    run(out, seed)


@app.command()
def fit(
    file: File,
    out: Annotated[Path, typer.Option(help="Folder for the trained model")],
    algorithm: Annotated[str, typer.Option(help="Name of the algorithm")] = "implicit-als",
    settings: Settings = None,
    columns: Columns = None,
    header: Header = None,
    missing: Missing = "error",
    duplicates: Repetitions = "error",
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    curve: Annotated[Path | None, typer.Option(help="Also draw the loss of each step, as PNG")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder to keep training in as it goes: the same command goes on from there")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train an algorithm on a file and save it."""
    from .algorithms import ALGORITHMS, named
    from .options import parse_settings, read_training_file
    from .recommender import Recommender
    from .reporting import plot_history

    if curve and not named(algorithm).epochs:
        trained = ", ".join(sorted(name for name, other in ALGORITHMS.items() if other.epochs))
        raise ValueError(f"--curve: {algorithm} is not trained in epochs, so there is no curve; {trained} are")

    parameters = parse_settings(settings or [], [algorithm])[algorithm]
    data = read_training_file(file, columns, header, missing, duplicates, user_features, item_features)
    options = {} if checkpoint is None else {"checkpoint": checkpoint}
    recommender = Recommender(algorithm, seed=seed, **parameters).fit(data, **options)
    recommender.save(out)
    if curve and recommender.history:
        plot_history(recommender.history, curve, name=algorithm)
        typer.echo(f"wrote {curve}")
    user = shlex.quote(str(recommender.user_ids.ids[0]))
    typer.echo(f"saved {out}; next: python -m affinax recommend {shlex.quote(str(out))} --user {user}")


@app.command()
def recommend(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model")],
    user: Annotated[list[str] | None, typer.Option(help="Id of a user; repeatable")] = None,
    liked: Annotated[list[str] | None, typer.Option(help="Instead: an item that a newcomer liked; repeatable")] = None,
    k: K = 10,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also answer what they have met already, for what is met again")
    ] = False,
    json_out: Json = None,
    seed: Seed = 0,
) -> None:
    """Recommend items to users of a saved model, or to a newcomer."""
    from .options import outside_ids
    from .recommender import Recommender
    from .reporting import print_frame, write_json

    recommender = Recommender.load(model)
    if liked:
        if user:
            raise ValueError("give either --user or --liked")
        asked = {"history": outside_ids(liked, recommender, "item")}
    elif user:
        asked = {"users": outside_ids(user, recommender, "user")}
    else:
        raise ValueError("give --user ID (or --liked ITEM for someone new)")
    frame = recommender.recommend(**asked, k=k, exclude_seen=not include_seen)
    print_frame(frame)
    if json_out:
        write_json(json_out, frame.to_dicts())


@app.command()
def evaluate(
    file: File,
    algorithm: Annotated[list[str], typer.Option(help="Name of an algorithm; repeatable")],
    test: Annotated[Path | None, typer.Option(help="Test interactions; without it the file is split")] = None,
    split: Annotated[str, typer.Option(help="random, leave-last or time")] = "time",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Such as implicit-als.rank=64; repeatable")
    ] = None,
    columns: Columns = None,
    header: Header = None,
    missing: Missing = "error",
    duplicates: Repetitions = "error",
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    k: K = 10,
    json_out: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the metrics, with confidence intervals, as PNG")] = None,
    seed: Seed = 0,
) -> None:
    """Train several algorithms on one split and compare them."""
    from .comparison import compare
    from .options import parse_settings, read_file, read_training_file, split_file
    from .reporting import metrics_plot, print_comparison, summary, write_json

    parameters = parse_settings(settings or [], algorithm)
    tables = {"user_features": user_features, "item_features": item_features}
    train_part = read_training_file(file, columns, header, missing, duplicates, **tables)
    if test is None:
        train_part, test_part = split_file(train_part, split, seed)
    else:
        once = "last" if duplicates == "keep" else duplicates  # what is to be found counts once
        test_part = read_file(test, columns, header, missing, once, like=train_part)
    results = compare(algorithm, train_part, test_part, k=k, seed=seed, parameters=parameters)
    print_comparison(results)
    if json_out:
        write_json(json_out, summary(results))
    if plot:
        metrics_plot(results, plot)
        typer.echo(f"wrote {plot}")


@app.command()
def tune(
    file: File,
    algorithm: Annotated[list[str], typer.Option(help="Name of an algorithm; repeatable")],
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="Values to try, such as l2=0.001,0.01 or ease.l2=50; repeatable")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Such as ndcg_at_10 or recall_at_20; rmse or mae for ratings")
    ] = "ndcg_at_10",
    split: Annotated[str, typer.Option(help="What to validate on: random, leave-last or time")] = "time",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="The most epochs; by default those of the algorithm")
    ] = None,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a better score that end a trial")] = 3,
    columns: Columns = None,
    header: Header = None,
    missing: Missing = "error",
    duplicates: Repetitions = "error",
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    json_out: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw all trials, as PNG")] = None,
    seed: Seed = 0,
) -> None:
    """Try parameters on a validation part of a file, and say how to fit the best."""
    import jax

    from .algorithms import builder, named
    from .engine.training import select
    from .options import fit_command, parse_grid, read_training_file, split_file
    from .reporting import print_trials, trials_plot, trials_summary, write_json

    points = parse_grid(grid or [], algorithm)
    tables = {"user_features": user_features, "item_features": item_features}
    x = read_training_file(file, columns, header, missing, duplicates, **tables)
    builders = {name: builder(name, x) for name in algorithm}
    train_part, validation_part = split_file(x, split, seed, "validate")
    most = {name: epochs or named(name).epochs or 1 for name in algorithm}
    key = jax.random.key(seed)
    found = select(builders, points, train_part, validation_part, metric, key=key, steps=most, patience=patience)
    print_trials(found)
    if json_out:
        write_json(json_out, trials_summary(found))
    if plot:
        trials_plot(found, plot)
        typer.echo(f"wrote {plot}")
    reading = {"--columns": columns, "--missing": missing, "--duplicates": duplicates}
    reading |= {f"--{name.replace('_', '-')}": path and str(path) for name, path in tables.items()}
    typer.echo(f"next: {fit_command(file, found.best, reading, header, seed)}")


@app.command()
def compress(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model")],
    out: Annotated[Path, typer.Option(help="Folder for the smaller one")],
    int8: Annotated[bool, typer.Option("--int8", help="Tables and dense layers in bytes")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="In half bytes")] = False,
    pq: Annotated[int | None, typer.Option(min=1, help="Tables of vectors in so many parts, of a byte each")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help='What is stored as what, such as "*.table=int4" or "*.kernel=bfloat16"; repeatable'),
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Also compute dense layers in bytes")] = False,
    clip: Annotated[bool, typer.Option(help="Give up the ends of a row's range where that is nearer")] = True,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Round by what layers are given of users (networks on sequences)")
    ] = False,
    prune: Annotated[float | None, typer.Option(help="Before: the share of weights that become 0")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Before: columns that factors are truncated to")] = None,
    test: Annotated[Path | None, typer.Option(help="Interactions to compare both on")] = None,
    columns: Columns = None,
    header: Header = None,
    missing: Missing = "error",
    duplicates: Repetitions = "error",
    k: K = 10,
    json_out: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw size against quality, as PNG")] = None,
    seed: Seed = 0,
) -> None:
    """Make a saved model smaller, and say what that saves and costs."""
    from .engine.compression.comparing import memory_of
    from .options import compressed, read_file, storage_rules
    from .recommender import Recommender
    from .reporting import bills_plot, bills_summary, print_bills, write_json

    if out.resolve() == model.resolve():
        raise ValueError(f"--out {out} is the model itself, which stays as it is: name another folder")
    if dynamic and not (int8 or int4 or rule):
        raise ValueError("--dynamic computes in bytes what is stored so: give --int8, --int4 or --rule")
    if calibrate and not (int8 or int4 or rule):
        raise ValueError("--calibrate is of rounding to bytes or half bytes: give --int8, --int4 or --rule")
    reading = {"--columns": columns, "--header": header is not None}
    reading |= {"--missing": missing != "error", "--duplicates": duplicates != "error"}
    needs_test = [
        name for name, given in ({"--json": json_out, "--plot": plot, "--k": k != 10} | reading).items() if given
    ]
    if test is None and needs_test:
        raise ValueError(f"{' and '.join(needs_test)}: without --test FILE there is nothing to read or measure")
    rules = storage_rules(int8, int4, rule or [])
    if not rules and pq is None and prune is None and rank is None:
        raise ValueError("say how: --int8, --int4, --pq PARTS, --rule PATTERN=KIND, --prune SHARE or --rank COLUMNS")
    whole = Recommender.load(model)
    how = {
        "pq": pq,
        "dynamic": dynamic,
        "clip": clip,
        "calibrate": calibrate,
        "prune": prune,
        "rank": rank,
        "seed": seed,
    }
    once = "last" if duplicates == "keep" else duplicates  # what is to be found counts once
    held_out = read_file(test, columns, header, missing, once, like=whole.train) if test else None
    small = whole.with_model(compressed(whole.model, rules, **how))
    bills = []
    if held_out is not None:
        from .engine.compression import compare

        names = (model.name, out.name) if model.name != out.name else (str(model), str(out))
        bills = compare(dict(zip(names, (whole.model, small.model), strict=True)), held_out, train=whole.train, k=k)
    small.save(out)
    before, after = memory_of(whole.model), memory_of(small.model)
    typer.echo(f"saved {out}, {after:,} bytes of parameters where {model} has {before:,}; it is used as {model} is")
    if prune is not None:
        typer.echo("pruning alone saves no bytes: zeros take as many as other numbers")
    if not bills:
        typer.echo("next: --test FILE measures what that costs in speed and quality")
    else:
        print_bills(bills)
        if json_out:
            write_json(json_out, bills_summary(bills))
        if plot:
            bills_plot(bills, plot)
            typer.echo(f"wrote {plot}")


@app.command()
def doctor(seed: Seed = 0) -> None:
    """Check this installation: versions, devices, threads, and every kernel against its reference."""
    from .doctor import run

    if not run(seed):
        raise typer.Exit(1)


def main() -> None:
    """Runs the command line; an error of the data or the arguments is one line and exit status 2."""
    try:
        app()
    except (ValueError, DivergenceError, NotImplementedError, OSError, MemoryError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"{type(error).__name__}: {message}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
