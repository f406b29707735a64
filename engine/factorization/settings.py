"""What an algorithm was built with, in words: so that a run is taken up by one of the same settings alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import numpy as np
from jax.core import Tracer

from .algorithm import Algorithm

P = ParamSpec("P")


def with_settings(build: Callable[P, Algorithm]) -> Callable[P, Algorithm]:
    """A function that builds an algorithm, which then knows its arguments as `Algorithm.settings`.

    >>> @with_settings
    ... def nothing(rank, *, l2=0.1, optimizer=None):
    ...     return Algorithm(lambda key, x: x, lambda key, state, x: (state, None))
    >>> dict(nothing(8, optimizer=print).settings)
    {'rank': 8, 'l2': 0.1, 'optimizer': 'builtin_function_or_method'}
    """

    @functools.wraps(build)
    def built(*arguments: P.args, **named: P.kwargs) -> Algorithm:
        algorithm = build(*arguments, **named)
        return algorithm._replace(settings=_in_words(build, arguments, named))

    return built


def _in_words(build: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments and defaults; those of a network among them as well, before what else is given to it."""
    signature = inspect.signature(build)
    bound = signature.bind(*arguments, **named)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
            continue
        if isinstance(value, type):
            of_network = inspect.signature(value).parameters.values()
            found |= {p.name: p.default for p in of_network if p.default is not p.empty}
        found[name] = value
    return {name: _word(value) for name, value in found.items() if not isinstance(value, Tracer)}


def _word(value: Any) -> Any:
    """What JSON holds: of functions, arrays and the like no more than what they are."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type):
        return value.__name__
    if type(value) in (tuple, list):
        return [_word(part) for part in value]
    if isinstance(value, np.generic) or (hasattr(value, "item") and np.ndim(value) == 0):
        return value.item()
    return type(value).__name__
