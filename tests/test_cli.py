"""The command line: files in, tables, models and JSON out, and one line where something is wrong."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shlex
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from affinax import __version__, doctor, kernels, reporting
from affinax.engine.factorization.fitting import History
from affinax.engine.training import latest_step
from affinax.kernels import int8_tiles
from affinax.kernels.op import Op
from affinax.recommender import Recommender

FAST = ["--set", "implicit-als.rank=16", "--set", "implicit-als.epochs=3"]
METRICS = {f"{name}_at_10" for name in ("hit_rate", "recall", "precision", "ndcg", "map", "mrr")} | {"seconds"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same interactions with a header, without one, and as two parts."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", 100 + item, 1 + (user * item) % 5, 880_000_000 + int(rng.integers(10_000_000)))
        for user in range(30)
        for item in range(25)
        if (user + item) % 3 and rng.random() < 0.6
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    frame.write_csv(folder / "ratings.csv")
    frame.write_csv(folder / "bare.tsv", separator="\t", include_header=False)
    frame[:250].write_csv(folder / "train.csv")
    frame[250:].vstack(pl.DataFrame([("nobody", 100, 1, 0)], schema=frame.schema, orient="row")).write_csv(
        folder / "test.csv"
    )
    return folder


def _error(result) -> str:
    """The message, if it is one line, with status 2 and no traceback."""
    status, _, err = result
    assert status == 2, result
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_fit_then_recommend(run, files, tmp_path):
    model, out = tmp_path / "a model", tmp_path / "out" / "top.json"
    status, text, _ = run("fit", files / "ratings.csv", "--out", model, "--set", "rank=16", "--set", "epochs=3")
    assert status == 0
    assert "ratings.csv: 288 rows, 30 users, 25 items, 1997-11-" in text
    assert "nothing left out or merged" in text
    assert f"next: python -m affinax recommend '{model}' --user u0" in text.replace("\n", "")

    status, text, _ = run("recommend", model, "--user", "u3", "--user", "u4", "--k", 3, "--json", out)
    assert status == 0
    assert "u3" in text
    answers = json.loads(out.read_text())
    assert [answer["user"] for answer in answers] == ["u3"] * 3 + ["u4"] * 3
    assert [answer["rank"] for answer in answers] == [1, 2, 3] * 2
    # Item ids are whole numbers in the file, and so are they here.
    status, text, _ = run("recommend", model, "--liked", "101", "--liked", "104", "-k", 2)
    assert status == 0
    assert "score" in text
    for more, again in ([], False), (["--include-seen"], True):
        assert run("recommend", model, "--liked", "101", "-k", 30, "--json", out, *more)[0] == 0
        assert (101 in [answer["item"] for answer in json.loads(out.read_text())]) is again

    assert "'u99' is neither an id" in _error(run("recommend", model, "--user", "u99"))
    assert "99 is neither an id nor a title" in _error(run("recommend", model, "--liked", "99"))
    assert "'x' is neither an id nor a title" in _error(run("recommend", model, "--liked", "x"))
    assert "give --user ID" in _error(run("recommend", model))
    assert "either --user or --liked" in _error(run("recommend", model, "--user", "u1", "--liked", "101"))


def test_evaluate(run, files, tmp_path):
    out, plot = tmp_path / "out" / "evaluation.json", tmp_path / "plots" / "evaluation.png"
    arguments = ["--algorithm", "popularity", "--algorithm", "implicit-als", *FAST, "--json", out, "--plot", plot]
    status, text, _ = run("evaluate", files / "ratings.csv", *arguments)
    assert status == 0
    assert "split at 1998-" in text
    assert "230 interactions before, 58 after" in text
    for word in ("popularity", "implicit-als", "NDCG@10", "Recall@10", "Hit rate@10", "seconds", "full catalogue"):
        assert word in text
    found = json.loads(out.read_text())
    assert set(found) == {"popularity", "implicit-als"}
    for values in found.values():
        assert set(values) == METRICS
        assert all(0 <= value <= 1 for name, value in values.items() if name != "seconds")
        assert values["seconds"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("how", "said"), [("random", "at random, seed 5: 230 to train on"), ("leave-last", "last 1 of")]
)
def test_splits(run, files, tmp_path, how, said):
    def numbers(seed):
        out = tmp_path / "out.json"
        arguments = ["--algorithm", "popularity", "--split", how, "--seed", seed, "--k", 3, "--json", out]
        status, text, _ = run("evaluate", files / "ratings.csv", *arguments)
        assert status == 0
        found = json.loads(out.read_text())["popularity"]
        assert "hit_rate_at_3" in found
        return text, {name: value for name, value in found.items() if name != "seconds"}

    text, found = numbers(5)
    assert said in text
    assert numbers(5) == (text, found)


def test_a_test_file_of_its_own(run, files):
    arguments = ["--test", files / "test.csv", "--algorithm", "popularity"]
    status, text, _ = run("evaluate", files / "train.csv", *arguments)
    assert status == 0
    assert "rows with unknown ids left out" in text.partition("test.csv")[2]


def test_columns_of_a_file_without_a_header(run, files, tmp_path):
    with_header, bare = tmp_path / "a.json", tmp_path / "b.json"
    same = ["--algorithm", "popularity", "--json"]
    assert run("evaluate", files / "ratings.csv", *same, with_header)[0] == 0
    assert run("evaluate", files / "bare.tsv", "--columns", "user, item, value, time", *same, bare)[0] == 0
    found, expected = (json.loads(path.read_text())["popularity"] for path in (bare, with_header))
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert "column" in _error(run("evaluate", files / "bare.tsv", "--columns", "user,price", *same, bare))


def test_columns_by_name_and_position(run, tmp_path):
    (tmp_path / "loans.csv").write_text("reader;book;stars\na;x;5\nb;x;3\nb;y;4\n")
    fit = ["fit", tmp_path / "loans.csv", "--algorithm", "popularity", "--out", tmp_path / "m", "--columns"]
    for columns in (["user=reader, item=book"], ["user=0,item=1", "--header"], ["user,item,value", "--header"]):
        assert "3 rows, 2 users, 2 items" in run(*fit, *columns)[1]
    assert "'item' must be role=column" in _error(run(*fit, "user=reader,item"))
    assert "no column 'title'" in _error(run(*fit, "user=reader,item=title"))
    assert "say header=True (--header)" in _error(run(*fit, "user,item,value"))


def test_side_tables(run, files, tmp_path):
    """Items that nobody met are in the catalogue, and recommended by what they are like."""
    items, users = tmp_path / "items.csv", tmp_path / "users.tsv"
    rows = [f"{100 + item},Film {item},{'Drama|War' if item % 2 else 'Comedy'}\n" for item in range(27)]
    items.write_text("item_id,title,genres\n" + "".join(rows))
    users.write_text(
        "user\tage\tjob\n" + "".join(f"u{u}\t{20 + u % 7}\t{'cook' if u % 2 else ''}x\n" for u in range(30))
    )
    tables = ["--item-features", items, "--user-features", users]
    fit = ["fit", files / "ratings.csv", *tables, "--out", tmp_path / "model", "--algorithm"]
    status, text, _ = run(*fit, "content-profiles", "--set", "columns={'genres': 'multi-hot'}")
    assert status == 0, text
    assert "27 items" in text
    out = tmp_path / "top.json"
    assert run("recommend", tmp_path / "model", "--liked", "101", "-k", 30, "--json", out)[0] == 0
    answers = json.loads(out.read_text())
    assert {answer["item"] % 2 for answer in answers} == {1}
    assert "Film 25" in {answer["title"] for answer in answers}  # rated by nobody
    logistic = ["--algorithm", "logistic-regression", "--json", out]
    assert run("evaluate", files / "ratings.csv", *tables, *logistic)[0] == 0
    assert json.loads(out.read_text()).keys() == {"logistic-regression"}
    ridge = ["--algorithm", "ridge-regression", "--grid", "l2=1.0,1000.0", "--metric", "rmse"]
    status, text, _ = run("tune", files / "ratings.csv", *tables, *ridge)
    assert status == 0, text
    command = shlex.split(text.replace("\n", " ").partition("next: ")[2])
    assert command[command.index("--item-features") + 1] == str(items)
    assert "needs item features" in _error(run("tune", files / "ratings.csv", "--algorithm", "content-profiles"))
    assert "needs item features" in _error(run("fit", files / "ratings.csv", *fit[-3:], "content-profiles"))
    items.write_text("item_id,genres\n100,Drama\n100,War\n")
    assert "items.csv: vocabulary: id np.int64(100) occurs more" in _error(run(*fit, "popularity"))
    items.write_text("film,genres\n,Drama\n")
    assert "items.csv has no column of item ids" in _error(run(*fit, "popularity"))
    (tmp_path / "items.json").write_text("[]")
    assert "items.json: a side table must be" in _error(
        run(*fit, "popularity", "--item-features", tmp_path / "items.json")
    )
    items.write_text("item,genres\n,Drama\n")
    assert "items.csv, row 0: the item id is missing" in _error(run(*fit, "popularity"))


def test_settings(run, files):
    few = ["--algorithm", "popularity", "--algorithm", "implicit-als"]
    evaluate = ["evaluate", files / "ratings.csv", *few, "--set"]
    # A setting without a name is for those that have it.
    assert run(*evaluate, "rank=16", "--set", "epochs=2", "--set", "solver=cg")[0] == 0
    assert "must be name=value" in _error(run(*evaluate, "rank"))
    assert "is for 'ease'; the algorithms here are ['popularity', 'implicit-als']" in _error(
        run(*evaluate, "ease.l2=1")
    )
    assert "no algorithm here has the parameter 'ranks'" in _error(run(*evaluate, "ranks=1"))
    assert "popularity has no parameter 'rank'; it has none" in _error(run(*evaluate, "popularity.rank=1"))
    assert "implicit-als: rank='many' must be a whole number" in _error(run(*evaluate, "rank=many"))
    assert "rank=0 must be finite and at least 1" in _error(run(*evaluate, "rank=0"))
    assert "implicit-als: l2='1;2' must be a number" in _error(run(*evaluate, "l2=1;2"))
    ranker = ["evaluate", files / "ratings.csv", "--algorithm", "bpr", "--set"]
    assert "bpr: hogwild='yes' must be True or False" in _error(run(*ranker, "hogwild=yes"))
    assert "l2=-1 must be finite and at least 0" in _error(run(*evaluate, "l2=-1"))


def test_tune(run, files, tmp_path):
    out, plot = tmp_path / "out" / "trials.json", tmp_path / "plots" / "trials.png"
    arguments = ["--algorithm", "implicit-als", "--algorithm", "ease", "--algorithm", "popularity", "--epochs", 4]
    arguments += ["--grid", "rank=4,8", "--grid", "implicit-als.l2=0.00001,0.01", "--grid", "ease.l2=5.0,50.0"]
    arguments += ["--metric", "recall_at_5", "--split", "random", "--seed", 3, "--missing", "drop"]
    status, text, _ = run("tune", files / "ratings.csv", *arguments, "--json", out, "--plot", plot)
    assert status == 0, text
    assert "split at random, seed 3: 230 to train on, 58 to validate" in text
    for word in ("algorithm", "rank", "l2", "recall_at_5", "step", "seconds", "outcome", "1e-05", "closed form"):
        assert word in text
    found = json.loads(out.read_text())
    assert found["metric"] == "recall_at_5"
    assert len(found["trials"]) == 7
    scores = [trial["recall_at_5"] for trial in found["trials"]]
    assert scores == sorted(scores, reverse=True)
    best = found["best"]
    assert best["score"] == scores[0]
    assert {name: found["trials"][0][name] for name in best["parameters"]} == best["parameters"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    # The command that it names fits the winner.
    command = shlex.split(text.replace("\n", " ").partition("next: ")[2])
    assert command[:4] == ["python", "-m", "affinax", "fit"]
    assert command[-2:] == ["--out", "model"]
    assert command[command.index("--missing") + 1] == "drop"
    assert command[command.index("--seed") + 1] == "3"
    assert run(*command[3:-1], tmp_path / "model")[0] == 0
    shown = "".join(f", {name}={value!r}" for name, value in best["parameters"].items())
    epochs = f", epochs={best['epochs']}" if best["epochs"] else ""
    assert f"<Recommender {best['algorithm']}{shown}{epochs}" in repr(Recommender.load(tmp_path / "model"))


def test_tune_for_ratings_and_wrong_grids(run, files, tmp_path):
    tune = ["tune", files / "ratings.csv", "--algorithm"]
    rated = [*tune, "biased-mf", "--metric", "rmse", "--grid", "learning_rate=0.01,1e30", "--grid", "rank=4"]
    status, text, _ = run(*rated, "--epochs", 3, "--plot", tmp_path / "trials.png")
    assert status == 0
    assert "diverged" in text
    assert "1e+30" in text
    assert "--set learning_rate=0.01" in text
    assert "--grid 'rank' must be name=value" in _error(run(*tune, "implicit-als", "--grid", "rank"))
    assert "no algorithm here has the parameter 'ranks'" in _error(run(*tune, "implicit-als", "--grid", "ranks=1"))
    assert "--grid 'ease.l2=1' is for 'ease'" in _error(run(*tune, "implicit-als", "--grid", "ease.l2=1"))
    assert "rank='' must be a whole number" in _error(run(*tune, "implicit-als", "--grid", "rank=4,"))
    assert "l2=-1 must be finite and at least 0" in _error(run(*tune, "implicit-als", "--grid", "l2=0.1,-1"))
    assert "--epochs says how many at most" in _error(run(*tune, "implicit-als", "--grid", "epochs=3,4"))
    assert "metric='ndcg' must be one of" in _error(run(*tune, "popularity", "--metric", "ndcg"))
    assert "algorithm 'als' must be one of" in _error(run(*tune, "als"))
    (tmp_path / "plain.csv").write_text("user,item\na,1\nb,2\na,2\n")
    plain = ["tune", tmp_path / "plain.csv", "--algorithm", "explicit-als"]
    assert "explicit-als learns from values" in _error(run(*plain))


def test_errors_are_one_line(run, files, tmp_path):
    popularity = ["--algorithm", "popularity"]
    assert "No such file" in _error(run("fit", tmp_path / "nowhere.csv", "--out", tmp_path / "m"))
    assert "directory" in _error(run("fit", tmp_path, "--out", tmp_path / "m"))
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv is empty" in _error(run("evaluate", tmp_path / "empty.csv", *popularity))
    (tmp_path / "bad.csv").write_text("user,item,rating\na,1,5\nb,2,N/A\n")
    message = _error(run("evaluate", tmp_path / "bad.csv", *popularity, "--split", "random"))
    assert message.startswith("InteractionError: bad.csv, line 3")
    assert "N/A" in message
    assert run("evaluate", tmp_path / "bad.csv", *popularity, "--missing", "drop", "--split", "time")[0] == 2
    (tmp_path / "ragged.csv").write_text("user,item\na,1\nb\n")
    assert "ragged.csv, line 3" in _error(run("evaluate", tmp_path / "ragged.csv", *popularity))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + b"\0" * 40)
    assert "broken.parquet" in _error(run("evaluate", tmp_path / "broken.parquet", *popularity))
    (tmp_path / "plain.csv").write_text("user,item\na,1\nb,2\na,2\n")
    assert "needs timestamps" in _error(run("evaluate", tmp_path / "plain.csv", *popularity))
    assert "how='half' must be one of" in _error(run("evaluate", files / "ratings.csv", *popularity, "--split", "half"))
    assert "algorithm 'als' must be one of" in _error(run("evaluate", files / "ratings.csv", "--algorithm", "als"))
    assert "duplicates='first' must be one of" in _error(
        run("evaluate", files / "ratings.csv", *popularity, "--duplicates", "first")
    )
    assert "ModelFileError" in _error(run("recommend", tmp_path, "--user", "1"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    fit = ["fit", files / "ratings.csv", *popularity, "--out"]
    assert "holds other files, such as notes.txt" in _error(run(*fit, tmp_path / "taken"))
    assert "explicit-als learns from values" in _error(
        run("fit", tmp_path / "plain.csv", "--algorithm", "explicit-als", "--out", tmp_path / "m")
    )


def test_repeated_pairs_and_missing_values(run, tmp_path):
    (tmp_path / "messy.csv").write_text("user,item,time\na,1,1\na,1,2\nb,2,3\nb,,4\na,2,5\n")
    fit = ["fit", tmp_path / "messy.csv", "--algorithm", "popularity", "--out", tmp_path / "model"]
    assert "is missing" in _error(run(*fit))
    assert "occurs again" in _error(run(*fit, "--missing", "drop"))
    status, text, _ = run(*fit, "--missing", "drop", "--duplicates", "last")
    assert status == 0
    assert "left out" in text
    assert "1 repeated pair merged by last" in text


def test_usage_errors(run, files):
    for arguments in (["evaluate", files / "ratings.csv"], ["fit"], ["nonsense"], ["recommend", "x", "--k", "0"]):
        status, _, err = run(*arguments)
        assert status == 2
        assert "Traceback" not in err
    status, text, _ = run("--version")
    assert (status, text.strip()) == (0, __version__)
    status, text, _ = run("--help")
    assert status == 0
    for command in ("demo", "fit", "recommend", "evaluate", "tune", "doctor"):
        assert command in text


def test_algorithm_names_are_never_cut(run, files, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, text, _ = run("evaluate", files / "ratings.csv", "--algorithm", "popularity", "--algorithm", "popularity")
    assert text.count("popularity") == 1  # an algorithm asked for twice is tried once
    assert "…" not in text


def test_as_a_process_of_its_own(files):
    command = [sys.executable, "-m", "affinax", "recommend", str(files / "nowhere"), "--user", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ModelFileError: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_training_shows_its_progress_on_a_terminal(files, tmp_path):
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "affinax", "evaluate", str(files / "ratings.csv"), "--algorithm", "implicit-als"]
    done = subprocess.run([*command, *FAST], stdout=subprocess.DEVNULL, stderr=follower, check=False)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # all is read, and nobody writes any more
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert done.returncode == 0, shown
    assert b"implicit ALS" in shown
    assert b"3/3" in shown
    assert b"interactions/s" in shown


def test_doctor_is_well():
    """In a process of its own: the thread layer is whichever parallel code of a process ran first took."""
    command = [sys.executable, "-m", "affinax", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout


def test_doctor_knows_every_kernel():
    names = [
        found.name for found in pkgutil.iter_modules(kernels.__path__) if not found.name.endswith(("_gpu", "_tpu"))
    ]
    written = [importlib.import_module(f"affinax.kernels.{name}") for name in names]
    ops = {op.name for module in written for op in vars(module).values() if isinstance(op, Op)}
    unwritten = set() if int8_tiles.available() else {"int8", "quantized_rows"}
    assert {op.name for op in doctor._CHECKS} == ops - unwritten


def test_fit_draws_a_learning_curve(run, files, tmp_path):
    curve = tmp_path / "plots" / "curve.png"
    arguments = ["fit", files / "ratings.csv", "--out", tmp_path / "model", "--curve", curve]
    status, text, _ = run(*arguments, "--set", "rank=16", "--set", "epochs=3")
    assert status == 0
    assert f"wrote {curve}" in text.replace("\n", "")
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in curve.parent.iterdir()] == ["curve.png"]

    arguments = ["fit", files / "ratings.csv", "--out", tmp_path / "closed", "--curve", curve, "--algorithm", "ease"]
    assert "--curve: ease is not trained in epochs, so there is no curve; bayesian-mf, " in _error(run(*arguments))
    assert not (tmp_path / "closed").exists()


def _shown(figure) -> tuple[list[str], list[str]]:
    """What is written at the axes and in them."""
    axes = figure.axes
    return [panel.get_ylabel() for panel in axes], [text.get_text() for panel in axes for text in panel.texts]


def test_learning_curves(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(reporting, "save_figure", lambda figure, path: figures.append(figure))
    steps = np.arange(1, 401)
    noisy = History(1 + 1 / steps, np.full(400, 0.5), None, "steps")
    reporting.plot_history(noisy, tmp_path / "curve.png", name="bpr")
    (axes,) = figures[-1].axes
    assert axes.get_title(loc="left") == "bpr, 400 steps in 3 min"
    assert len(axes.lines) == 2
    assert axes.get_yscale() == "linear"

    validated = np.array([2, 4, 5])
    history = History(
        np.array([9e4, 5e3, 2e3, 1500, 1200.0]), np.ones(5), np.array([0.1, 0.3, 0.2]), "steps", validated
    )
    reporting.plot_history(history, tmp_path / "curve.png", name="implicit-als")
    assert _shown(figures[-1]) == (["loss", "validation"], ["1,200", "0.3000 after step 4"])
    assert figures[-1].axes[0].get_title(loc="left") == "implicit-als, 5 steps in 5.0 s"
    assert figures[-1].axes[0].get_yscale() == "log"
    # One step, one score, and a loss below 0 have no scale to speak of.
    single = History(np.array([-0.5]), np.ones(1), np.array([0.1]), "steps", np.array([1]))
    reporting.plot_history(single, tmp_path / "curve.png", name="bpr")
    assert _shown(figures[-1]) == (["loss", "validation"], ["-0.5", "0.1000 after step 1"])
    for figure in figures:
        figure.savefig(tmp_path / "drawn.png")


def test_fit_goes_on_from_a_checkpoint(run, files, tmp_path):
    command = [
        "fit",
        files / "ratings.csv",
        "--algorithm",
        "implicit-als",
        "--set",
        "rank=4",
        "--out",
        tmp_path / "model",
    ]
    kept = ["--checkpoint", tmp_path / "run"]
    assert run(*command, *kept, "--set", "epochs=2")[0] == 0
    assert run(*command, *kept, "--set", "epochs=4")[0] == 0
    assert latest_step(tmp_path / "run") == 4
    message = _error(run(*command, *kept, "--seed", 1))
    assert "holds a run with key=" in message
    message = _error(run("fit", files / "ratings.csv", "--algorithm", "ease", "--out", tmp_path / "e", *kept))
    assert "ease is not trained in epochs, so that ['checkpoint'] would do nothing" in message
