"""The examples in the docstrings run as printed."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import affinax

MODULES = [name for _, name, _ in pkgutil.walk_packages(affinax.__path__, "affinax.") if not name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
