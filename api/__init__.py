"""affinax: a JAX-native compute engine for recommender systems.

The names here load what they need when they are first used, so that `import affinax` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import datasets
    from .engine.data import Interactions, Vocabulary, clean, read_interactions
    from .recommender import Recommender

_HOMES = {
    "Interactions": ".engine.data",
    "Recommender": ".recommender",
    "Vocabulary": ".engine.data",
    "clean": ".engine.data",
    "read_interactions": ".engine.data",
}
_MODULES = ("datasets", "engine", "kernels", "models")

__all__ = ["Interactions", "Recommender", "Vocabulary", "__version__", "clean", "datasets", "read_interactions"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
