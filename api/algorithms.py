"""The algorithms that go by name, with their defaults: what `Recommender` and the command line offer."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .engine.data import Interactions, Sequences
from .engine.factorization import (
    bayesian_mf,
    biased_mf,
    bpr,
    explicit_als,
    fit,
    implicit_als,
    logistic_mf,
    softmax_mf,
    svd_plus_plus,
)
from .engine.factorization.fitting import History
from .engine.neighbors import (
    content_profiles,
    ease,
    gf_cf,
    item_knn,
    knn_baseline,
    popularity,
    random,
    rp3beta,
    user_knn,
)
from .engine.regression import logistic_recommender, ridge_recommender
from .engine.training.trials import solve
from .networks import PairRanker, SequenceRetriever, TowerRetriever


class Named(NamedTuple):
    """One algorithm by name.

    Attributes:
        build: Takes the parameters; returns an `Algorithm`, or the model where there is nothing to iterate.
        epochs: Default number of passes over the data; 0 where `build(interactions, **parameters)` is the
            whole training.
        defaults: Parameters that differ from those of `build`.
        needs_values: Whether interactions must have values.
    """

    build: Callable[..., Any]
    epochs: int
    defaults: dict[str, Any]
    needs_values: bool = False


ALGORITHMS = {
    "bayesian-mf": Named(bayesian_mf, 200, {"rank": 16}, needs_values=True),
    "bert4rec": Named(SequenceRetriever("BERT4Rec"), 50, {}),
    "biased-mf": Named(biased_mf, 20, {"rank": 100}, needs_values=True),
    "bpr": Named(bpr, 100, {"rank": 64}),
    "content-profiles": Named(content_profiles, 0, {}),
    "dcn": Named(PairRanker("DCN"), 10, {}),
    "deepfm": Named(PairRanker("DeepFM"), 10, {}),
    "din": Named(PairRanker("DIN"), 10, {}),
    "dlrm": Named(PairRanker("DLRM"), 10, {}),
    "ease": Named(ease, 0, {}),
    "explicit-als": Named(explicit_als, 20, {"rank": 16, "l2": 0.1}, needs_values=True),
    "factorization-machine": Named(PairRanker("FactorizationMachine"), 20, {}),
    "gf-cf": Named(gf_cf, 0, {}),
    "hstu": Named(SequenceRetriever("HSTU"), 50, {"loss": "sampled_softmax", "negatives": 128, "temperature": 0.05}),
    "implicit-als": Named(implicit_als, 16, {"rank": 64}),
    "item-knn": Named(item_knn, 0, {}),
    "knn-baseline": Named(knn_baseline, 0, {}, needs_values=True),
    "logistic-mf": Named(logistic_mf, 50, {"rank": 64}),
    "logistic-regression": Named(logistic_recommender, 0, {}),
    "mlp": Named(PairRanker("MLP"), 20, {"ratings": True}, needs_values=True),
    "neumf": Named(PairRanker("NeuMF"), 20, {}),
    "popularity": Named(popularity, 0, {}),
    "random": Named(random, 0, {}),
    "ridge-regression": Named(ridge_recommender, 0, {}, needs_values=True),
    "rp3beta": Named(rp3beta, 0, {}),
    "sasrec": Named(SequenceRetriever("SASRec"), 50, {}),
    "softmax-mf": Named(softmax_mf, 20, {"rank": 64}),
    "svd-plus-plus": Named(svd_plus_plus, 20, {"rank": 20}, needs_values=True),
    "two-tower": Named(TowerRetriever(), 20, {}),
    "user-knn": Named(user_knn, 0, {}),
}


def named(name: str) -> Named:
    """The algorithm of that name.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r} must be one of {sorted(ALGORITHMS)}")
    return ALGORITHMS[name]


def parameters_of(name: str) -> dict[str, Any]:
    """The parameters that may be set, with their defaults."""
    algorithm = named(name)
    # What is handed on from elsewhere, arrays and functions, which are no settings.
    held_back = ("interactions", "key", "features", "optimizer", "view")
    names = {
        parameter.name: None if parameter.default is parameter.empty else parameter.default
        for parameter in inspect.signature(algorithm.build).parameters.values()
        if parameter.name not in held_back
    }
    return {**names, **algorithm.defaults, **({"epochs": algorithm.epochs} if algorithm.epochs else {})}


def checked_parameters(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters, once it is sure that the algorithm has them and that they are in range.

    Raises:
        ValueError: One that is not, or an unknown algorithm.
    """
    known, checked = parameters_of(name), dict(parameters)
    signature = inspect.signature(named(name).build).parameters
    for parameter, value in parameters.items():
        if parameter not in known:
            has = f"it has {sorted(known)}" if known else "it has none"
            raise ValueError(f"{name} has no parameter {parameter!r}; {has}")
        annotation = "int" if parameter == "epochs" else signature[parameter].annotation
        if annotation == "Sequence[int]":
            checked[parameter] = _whole_numbers(f"{name}: {parameter}", value)
            continue
        if value is None and "None" in str(annotation):
            continue
        if annotation in ("int", int, "int | None"):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise ValueError(f"{name}: {parameter}={value!r} must be a whole number")
            checked[parameter] = int(value)
        elif isinstance(known[parameter], bool):
            if not isinstance(value, bool):
                raise ValueError(f"{name}: {parameter}={value!r} must be True or False")
        elif isinstance(known[parameter], float) and not isinstance(value, numbers.Real):
            raise ValueError(f"{name}: {parameter}={value!r} must be a number")
    algorithm = named(name)
    if algorithm.epochs:
        settings = algorithm.defaults | checked
        epochs = settings.pop("epochs", 1)
        if epochs < 1:
            raise ValueError(f"{name}: {epochs=} must be at least 1")
        algorithm.build(**settings)  # which checks the rest
    return checked


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    """Several from a list or from one."""
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    if any(isinstance(v, bool) or not isinstance(v, numbers.Integral) or v < 1 for v in given):
        raise ValueError(f"{name}={value!r} must be whole numbers above 0, such as 64,32")
    return tuple(int(v) for v in given)


def builder(name: str, interactions: Interactions | Sequences) -> Callable[..., Any]:
    """What makes the algorithm from its parameters, the defaults being those here: for `engine.training.select`.

    Raises:
        ValueError: An unknown name, values missing where they are needed, or sequences where they are not read.
    """
    algorithm = named(name)
    if isinstance(interactions, Sequences):
        if not isinstance(algorithm.build, SequenceRetriever):
            raise ValueError(f"{name} learns from pairs, and these are sequences: read them without repetitions")
        return functools.partial(algorithm.build, **algorithm.defaults)
    if algorithm.needs_values and interactions.values is None:
        raise ValueError(f"{name} learns from values, and these interactions have none; try implicit-als")
    return functools.partial(algorithm.build, **algorithm.defaults)


def train(
    name: str,
    interactions: Interactions,
    *,
    seed: int = 0,
    parameters: dict[str, Any] | None = None,
    sequences: Sequences | None = None,
    **options: Any,
) -> tuple[Any, History | None]:
    """Trains an algorithm by name: `(model, history)`.

    Args:
        name: Of `ALGORITHMS`.
        interactions: What to train on.
        seed: Of the random key.
        parameters: Of the algorithm, and "epochs".
        sequences: What networks on sequences train on instead.
        **options: Passed to `fit`, such as `callback` and `progress`.

    Raises:
        ValueError: An unknown name or parameter, values missing where they are needed, or options for an algorithm
            that is not trained in epochs.
    """
    algorithm, parameters = named(name), checked_parameters(name, parameters or {})
    build, key = builder(name, interactions), jax.random.key(seed)
    epochs = parameters.pop("epochs", algorithm.epochs)
    if not algorithm.epochs:
        idle = sorted(options.keys() - {"progress"})
        if idle:
            raise ValueError(f"{name} is not trained in epochs, so that {idle} would do nothing")
        return solve(build, interactions, parameters, key), None
    data = sequences if sequences is not None and isinstance(algorithm.build, SequenceRetriever) else interactions
    model, history = fit(build(**parameters), data, key=key, epochs=epochs, **options)
    # What an optimizer remembers serves no answer.
    return (model._replace(training=None) if hasattr(model, "training") else model), history
