"""The progress bar of whatever takes long."""

from __future__ import annotations

import sys


class Progress:
    """A progress bar on the error stream, or nothing: `with Progress("ALS", 10) as bar: bar.advance("loss 0.3")`.

    Args:
        name: What is going on.
        total: Steps to the end.
        shown: Whether there is a bar; if None, where the error stream is a terminal.
    """

    def __init__(self, name: str, total: int, shown: bool | None = None):
        self._bar = None
        if sys.stderr.isatty() if shown is None else shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            columns = (TextColumn(columns[0]), *columns[1:], TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=total, status="compiling")

    @property
    def shown(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, status: str, steps: int = 1) -> None:
        """One step (or several) further, and what to say beside the bar."""
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, status=status)
