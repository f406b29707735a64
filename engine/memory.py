"""What memory there is, and large arrays that JAX takes as they are."""

from __future__ import annotations

import math
import os
from typing import Any

import jax
import numpy as np

_ALIGNMENT = 64  # bytes; an array that begins elsewhere is copied by JAX


def require_memory(needed: float | int, what: str, instead: str) -> None:
    """Refuses what would not fit.

    Args:
        needed: Estimate, in bytes.
        what: Needs it.
        instead: What would do.

    Raises:
        MemoryError: There is less; the message has both numbers.
    """
    free = free_bytes()
    if free is not None and needed > free:
        raise MemoryError(f"{what} needs {readable(needed)} (free here: {readable(free)}). {instead}")


def readable(n_bytes: float | int) -> str:
    """
    >>> readable(3 * 2**29), readable(2000)
    ('1.5 GiB', '2.0 KiB')
    """
    unit = min(int(math.log2(max(n_bytes, 1))) // 10, 3)
    return f"{n_bytes / 2 ** (10 * unit):.1f} {('bytes', 'KiB', 'MiB', 'GiB')[unit]}"


def free_bytes() -> int | None:
    """Memory that can be had without swapping, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that begin where JAX wants an array to begin; what is never written takes no memory."""
    n, size = math.prod(shape), np.dtype(dtype).itemsize
    buffer = np.zeros(n + _ALIGNMENT // size, dtype)
    first = -buffer.ctypes.data % _ALIGNMENT // size
    return buffer[first : first + n].reshape(shape)


def as_jax(array: np.ndarray) -> jax.Array:
    """The same memory as an array of JAX, if it is aligned; it must not be written any more."""
    return jax.device_put(array, may_alias=True)
