"""The house rules: what is packaged, who may import whom, and how quickly the front door opens."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .sources import FOLDERS, MODULES, ROOT, module_name

# What each layer may not import, of ours and of others'.
FORBIDDEN = {
    "kernels": {"affinax", "affinax.engine", "affinax.models", "flax", "optax", "polars", "scipy"},
    "engine": {"affinax", "affinax.models", "flax"},
    "models": {"affinax"},
    "api": set(),
}


def _imports(path: Path) -> list[tuple[int, int, str]]:
    """`(line, dots, full name)` of every import in a file, wherever in it."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, 0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import x` may import a module x.
            found += [(node.lineno, node.level, f"{base}.{alias.name}") for alias in node.names]
    return found


def _is_of(name: str, package: str) -> bool:
    """Whether a full name is of a package; "affinax" stands for what api/ alone holds."""
    if package == "affinax":
        inner = tuple(f"affinax.{folder}" for folder in FOLDERS)
        return name.split(".")[0] == "affinax" and not name.startswith(inner)
    return name == package or name.startswith(package + ".")


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {module_name(path) for path in MODULES if path.name == "__init__.py"}
    assert set(settings["packages"]) == folders
    assert len(settings["packages"]) == len(folders)
    assert settings["package-dir"] == {"affinax": "api"} | {f"affinax.{name}": name for name in FOLDERS[1:]}
    # A folder of modules without an __init__.py would be left out, too.
    assert {path.parent / "__init__.py" for path in MODULES} <= set(MODULES)
    assert (ROOT / "api" / "py.typed").exists()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_one_way(path):
    layer = path.relative_to(ROOT).parts[0]
    for line, dots, name in _imports(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        assert dots or not _is_of(name.partition(".")[0], "affinax"), f"{where}: imports inside are relative"
        for package in FORBIDDEN[layer]:
            assert not _is_of(name, package), f"{where}: {layer} may not"


def test_nothing_imports_a_folder_by_its_bare_name():
    """It would work from the root of the repository, and only there."""
    for folder in (*FOLDERS, "tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            for line, dots, name in _imports(path):
                bare = not dots and name.partition(".")[0] in FOLDERS
                assert not bare, f"{path.relative_to(ROOT)}:{line} imports {name}: say affinax.{name}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_and_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if "overload" in {getattr(one, "id", None) for one in node.decorator_list}:
                continue  # what it does is said once
            assert ast.get_docstring(node), f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has no docstring"


def test_a_module_and_a_function_never_share_a_name():
    for path in MODULES:
        if path.name != "__init__.py":
            continue
        package = importlib.import_module(module_name(path))
        for module in pkgutil.iter_modules([str(path.parent)]):
            held = inspect.getattr_static(package, module.name, None)
            assert held is None or inspect.ismodule(held), f"{package.__name__}.{module.name} is a module and a name"


def test_exported_names_exist():
    for path in MODULES:
        if path.name == "__init__.py":
            package = importlib.import_module(module_name(path))
            names = list(getattr(package, "__all__", []))  # whose order the linter sees to
            assert len(set(names)) == len(names), package
            for name in names:
                assert getattr(package, name) is not None


def test_the_front_door_opens_quickly():
    code = """
import json, sys, time
began = time.perf_counter()
import affinax
seconds = time.perf_counter() - began
heavy = [name for name in ("jax", "numba", "polars", "flax", "scipy", "numpy", "typer") if name in sys.modules]
print(json.dumps([seconds, heavy, dir(affinax), affinax.__version__]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    seconds, heavy, names, version = json.loads(done.stdout)
    assert seconds < 3
    assert heavy == []
    assert {"Interactions", "Recommender", "Vocabulary", "clean", "datasets", "engine", "models"} <= set(names)
    assert version


def test_the_engine_never_loads_flax_or_the_front_door():
    code = """
import sys
import affinax.engine.data, affinax.engine.evaluation, affinax.engine.factorization, affinax.engine.retrieval
assert "flax" not in sys.modules and "typer" not in sys.modules and "affinax.recommender" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tests")


def test_an_unknown_name_of_the_package():
    affinax = importlib.import_module("affinax")
    with pytest.raises(AttributeError, match="module 'affinax' has no attribute 'nope'"):
        affinax.nope  # noqa: B018
