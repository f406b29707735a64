"""Parallel work in Numba kernels: an even split of rows, and a thread layer that bears concurrent calls."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import warnings

import numba
import numpy as np

# Iterations of the parallel loop of a kernel, each of which takes chunks from a common queue until none is
# left: threads stay busy whatever the others do, and no thread count is compiled in.
WORKERS = 64


@numba.njit(cache=True, nogil=True)
def balanced_bounds(indptr, n_chunks, row_cost):
    """Bounds of at most `n_chunks` runs of rows with about equal cost: entries, plus `row_cost` a row."""
    n_rows = len(indptr) - 1
    n_chunks = max(1, min(n_chunks, n_rows))
    total = np.int64(indptr[n_rows]) + np.int64(row_cost) * n_rows
    bounds = np.empty(n_chunks + 1, np.int64)
    bounds[0] = 0
    row = 0
    for chunk in range(1, n_chunks):
        while row < n_rows and np.int64(indptr[row]) + np.int64(row_cost) * row < total * chunk // n_chunks:
            row += 1
        bounds[chunk] = row
    bounds[n_chunks] = n_rows
    return bounds


def _load_tbb() -> None:
    """Loads the TBB library of the `tbb` package, so that Numba can take it as its thread layer.

    Numba's wheels bring no OpenMP library, and the layer they fall back to ends the process when two threads
    call parallel code at once, as XLA may. TBB bears that, but is found only once it is loaded, and the first
    parallel call of the process decides: so it is loaded when this module is.
    """
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith(("libtbb.so.12", "libtbb.12.dylib", "tbb12.dll")):
            path = os.path.realpath(file.locate())
            if os.path.exists(path):
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                return


_load_tbb()


def require_safe_layer() -> None:
    """Warns where the thread layer was chosen before TBB was there, and cannot bear concurrent calls."""
    try:
        layer = thread_layer()
    except ValueError:  # none chosen yet
        return
    if layer == "workqueue":
        warnings.warn(
            "Numba took its workqueue thread layer, which ends the process when two threads call parallel code at "
            "once. Import affinax before other code that runs Numba in parallel, or install tbb",
            RuntimeWarning,
            stacklevel=2,
        )


def thread_layer() -> str:
    """The thread layer in use, once a parallel kernel has run: "tbb", "omp" or "workqueue"."""
    return str(numba.threading_layer())  # pyright: ignore[reportPrivateImportUsage]
