"""What is made on a background thread before it is asked for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END = object()


class Prefetch(Generic[T]):
    """Iterates `make(first), …, make(last)`, made on a thread of its own, `ahead` before they are taken.

    An exception of `make` is raised where its turn comes. As a context manager it ends the thread on leaving.

    Args:
        make: Called on the other thread, for one number after the other.
        first: The first number.
        last: The last.
        ahead: How many lie ready at most; if several are taken at once, twice as many spare a wait for the next.

    Attributes:
        waited: Seconds that were spent on waiting for what was not ready yet.

    >>> with Prefetch(lambda step: step * step, 1, 4) as squares:
    ...     list(squares)
    [1, 4, 9, 16]
    """

    def __init__(self, make: Callable[[int], T], first: int, last: int, ahead: int = 16):
        self.waited = 0.0
        self._ready: queue.Queue[Any] = queue.Queue(ahead)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make, first, last), daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[int], T], first: int, last: int) -> None:
        try:
            for number in range(first, last + 1):
                if not self._put((make(number), None)):
                    return
            self._put((_END, None))
        except BaseException as error:
            self._put((_END, error))

    def _put(self, entry: tuple[Any, BaseException | None]) -> bool:
        while not self._ended.is_set():
            try:
                self._ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            began = time.perf_counter()
            value, error = self._ready.get()
            self.waited += time.perf_counter() - began
            if error is not None:
                raise error
            if value is _END:
                return
            yield value

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
