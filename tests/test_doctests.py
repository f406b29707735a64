"""The examples in the docstrings run as printed."""

from __future__ import annotations

import ast
import doctest
import importlib

import pytest

from .sources import MODULES, module_name


def _examples():
    """Every docstring with an example. Not those doctest finds: it passes over functions that are decorated."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and ">>>" in text:
                    name = module_name(path)
                    yield pytest.param(name, text, id=f"{name}.{getattr(node, 'name', '')}")


@pytest.mark.parametrize(("module", "text"), list(_examples()))
def test_examples(module, text):
    names = dict(vars(importlib.import_module(module)))
    test = doctest.DocTestParser().get_doctest(text, names, module, None, None)
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0
