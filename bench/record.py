"""Results with all that is needed to read them: machine, versions, command."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).parent.parent / ".runs"
_OURS = ("affinax", "jax", "jaxlib", "numba", "numpy", "scipy")
_PEERS = ("implicit", "faiss-cpu", "scikit-learn", "sparse-dot-topn", "scikit-surprise", "deepctr-torch", "torch")
_PACKAGES = _OURS + _PEERS


def record(name: str, results: dict[str, Any]) -> None:
    """Writes parts of `bench/results/<name>.json`, each with where and how it was measured; other parts stay."""
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    where = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": f"python -m pytest bench/bench_{name}.py",
        "machine": {
            "cpu": _cpu(),
            **_accelerator(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "python": platform.python_version(),
        },
        "versions": {package: version for package in _PACKAGES if (version := _version(package))},
    }
    content |= {part: {"results": found, **where} for part, found in results.items()}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(results, indent=1), file=sys.stderr)


def recorded(name: str, part: str) -> Any:
    """The results of a part of `bench/results/<name>.json`, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()).get(part, {}).get("results") if path.exists() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accelerator() -> dict[str, str]:
    return {} if jax.default_backend() == "cpu" else {"accelerator": jax.devices()[0].device_kind}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    widest = next((f for f in ("avx512f", "avx2") if f" {f} " in flags + " "), "no AVX2")
    return f"{names[0] if names else platform.processor()} ({widest})"
