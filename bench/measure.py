"""Time and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def take_turns(
    benchmark: Any, calls: dict[str, Callable[[], Any]], rounds: int = 5, pause: float = 0.0, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each call, after one to warm up; they take turns, so that all meet the same machine.

    The first is what pytest-benchmark measures; the others run between its rounds and are in its `extra_info`. It
    measures once a test: further contests of a test give None. The
    threads of OpenMP spin for a while after a call of a peer: `pause` seconds let them come to rest.
    """
    (ours, measured), *others = calls.items()
    seconds: dict[str, list[float]] = {name: [] for name in calls}

    def timed(name: str, call: Callable[[], Any]) -> None:
        began = time.perf_counter()
        call()
        seconds[name].append(time.perf_counter() - began)

    for call in calls.values() if warm_up else ():
        call()

    def others_turn() -> None:
        for name, call in others:
            time.sleep(pause)
            timed(name, call)
        time.sleep(pause)

    if benchmark is not None:
        benchmark.pedantic(lambda: timed(ours, measured), setup=others_turn, rounds=rounds)
    for _ in range(rounds if benchmark is None else 0):
        others_turn()
        timed(ours, measured)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    if benchmark is not None:
        benchmark.extra_info.update(medians)
    return medians


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
