"""The shared memory of an NVIDIA GPU, in programs of Pallas (Mosaic GPU): tiles there, and copies to and from it."""

from __future__ import annotations

from typing import Any

import jax.experimental.pallas.mosaic_gpu as gpu
import jax.numpy as jnp

LINE = 128  # bytes of a row that lie together in a tile


def tile(rows: int, columns: int, dtype: Any) -> Any:
    """Room for what goes through the tensor cores, or into registers as it would come from them."""
    size = jnp.dtype(dtype).itemsize
    line = min(LINE, columns * size)
    transforms = gpu.TilingTransform((8, line // size)), gpu.SwizzleTransform(line)
    return gpu.SMEM((rows, columns), dtype, transforms=transforms)


def fetch(barrier: Any, *copies: tuple[Any, Any]) -> None:
    """Copies to shared memory, `(source, target)` each, that have arrived when it returns."""
    for source, target in copies:
        gpu.copy_gmem_to_smem(source, target, barrier)
    gpu.barrier_wait(barrier)


def store(*copies: tuple[Any, Any]) -> None:
    """Copies from shared memory, `(source, target)` each."""
    gpu.commit_smem()
    for source, target in copies:
        gpu.copy_smem_to_gmem(source, target)
    gpu.wait_smem_to_gmem(0)
