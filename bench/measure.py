"""Time and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def take_turns(
    benchmark: Any, calls: dict[str, Callable[[], Any]], rounds: int = 5, pause: float = 0.0, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each call, after one to warm up; they take turns, so that all meet the same machine.

    The first is what pytest-benchmark measures; the others run between its rounds and are in its `extra_info`. The
    threads of OpenMP spin for a while after a call of a peer: `pause` seconds let them come to rest.
    """
    (ours, measured), *others = calls.items()
    seconds: dict[str, list[float]] = {name: [] for name, _ in others}
    for call in calls.values() if warm_up else ():
        call()

    def others_turn() -> None:
        for name, call in others:
            time.sleep(pause)
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
        time.sleep(pause)

    benchmark.pedantic(measured, setup=others_turn, rounds=rounds)
    medians = {ours: float(benchmark.stats.stats.median)}
    medians |= {name: float(np.median(times)) for name, times in seconds.items()}
    benchmark.extra_info.update(medians)
    return medians


_WATCHED = """
import threading
import psutil
process, done = psutil.Process(), threading.Event()
peak = [process.memory_info().rss]
before = peak[0]
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], process.memory_info().rss)
threading.Thread(target=watch, daemon=True).start()
{call}
done.set()
print(peak[0] - before)
"""


def peak_bytes(setup: str, call: str, *arguments: Any) -> int:
    """Most memory that `call` takes, in a process of its own, above what it has after `setup`."""
    command = [sys.executable, "-c", setup + _WATCHED.format(call=call), *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
