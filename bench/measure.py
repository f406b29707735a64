"""Time and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def median_seconds(calls: dict[str, Callable[[], Any]], rounds: int = 5, pause: float = 0.0) -> dict[str, float]:
    """Median time of each call, after one that warms up; they take turns, so that all meet the same machine.

    The threads of OpenMP spin for a while after a call of a peer: `pause` seconds let them come to rest.
    """
    seconds = {name: [] for name in calls}
    for timed in range(rounds + 1):
        for name, call in calls.items():
            time.sleep(pause)
            began = time.perf_counter()
            call()
            if timed:
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def forget_peak() -> int:
    """Has Linux count the most memory of this process anew; returns what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def peak() -> int:
    """Most memory that this process has had since, in bytes: Linux's own count, which no call can hide from."""
    return _memory("VmHWM")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


_MEASURED = """
from bench.measure import forget_peak, peak
before = forget_peak()
{call}
print(peak() - before)
"""


def peak_bytes(setup: str, call: str, *arguments: Any) -> int:
    """Most memory that `call` takes, in a process of its own, above what it has after `setup`."""
    command = [sys.executable, "-c", setup + _MEASURED.format(call=call), *map(str, arguments)]
    root = Path(__file__).parent.parent
    return int(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)
