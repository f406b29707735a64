"""Time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
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


def peak_of_process() -> int:
    """Most memory that this process has had at once, in bytes, as Linux kept count of it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
