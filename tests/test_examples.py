"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys

from .sources import ROOT


def test_larger_stacks(movielens_100k):
    """In a process of its own, which makes eight devices of one before JAX looks for them."""
    command = [sys.executable, str(ROOT / "examples" / "stacks.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if ": loss " in line]
    assert len(lines) == 3
    for line in lines:
        first, last = (float(part) for part in line.split(": loss ")[1].split(" -> "))
        assert last < 0.9 * first, line
