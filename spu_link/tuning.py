"""Settings of threads and memory for a process of host or device, where both share a machine."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

SPIN = 10_000
"""Rounds that an idle OpenMP thread spins before it sleeps, about 0.1 ms."""

KEPT_BYTES = 256 << 20
"""Maximum of freed memory, in bytes, that is kept at hand instead of going back to the system."""

BLAS_SPIN = 18
"""Idle threads of numpy's and scipy's OpenBLAS spin for 2 to this power clock cycles, 65 µs, and not for 20 ms."""

LARGE_BYTES = 32 << 20
"""Blocks from this size on come from the system and go back to it; the maximum that glibc allows."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def tune_process() -> None:
    """Tune threads and memory of this process and its children. Call it before torch or numpy is first imported.

    Idle OpenMP threads by default spin for milliseconds after each parallel region, on a processor that the other one
    needs; if they sleep at once, each region waits for them to wake. So they spin for a moment and then sleep. OpenBLAS
    does the same for 20 ms, and is set not to. ``ACTIVE`` matters where a process has more threads than processors:
    without it libgomp then does not spin at all.

    glibc returns freed memory to the system at once, and takes it again page by page: a third of the time of a
    curvature capture. So some of it is kept. What the user has set in the environment stays.
    """
    malloc = {"MALLOC_TRIM_THRESHOLD_": KEPT_BYTES, "MALLOC_MMAP_THRESHOLD_": LARGE_BYTES}
    settings = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": SPIN, "OPENBLAS_THREAD_TIMEOUT": BLAS_SPIN, **malloc}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it, and reads its environment only at start
    if mallopt is not None and not malloc.keys() & os.environ.keys():
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    for name, value in settings.items():
        os.environ.setdefault(name, str(value))


def settle_process() -> None:
    """Exclude all present objects from garbage collection, once in a process. Call it when all has been imported.

    Hundreds of thousands of objects come with torch and stay for good. To look through them takes 0.1 s, in which
    nothing else is done, every few seconds of a busy event loop. What has been made before the call would never be
    collected, so a second one does nothing.
    """
    _settle(os.getpid())


@cache
def _settle(process: int) -> None:
    gc.collect()
    gc.freeze()


@contextmanager
def without_collection() -> Iterator[None]:
    """Let no garbage be collected within. For blocks that make thousands of objects which are all gone at the end.

    While they are there, Python takes them for a growing heap and looks through everything again and again.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
