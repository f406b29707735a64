"""The modules of the package, where they lie and how they are imported."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("api", "engine", "kernels", "models")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Of the module in this file: api/ is affinax itself."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = ["affinax", *(parts[1:] if parts[0] == "api" else parts)]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
