"""How threads of the algebra library wait for work, where host and device share a machine."""

from __future__ import annotations

import os

SPIN = 10_000
"""Rounds that an idle OpenMP thread spins before it sleeps, about 0.1 ms."""


def let_idle_threads_sleep() -> None:
    """Choose, for this process and its children, that idle OpenMP threads spin for a moment and then sleep.

    By default they spin for some milliseconds after each parallel region, on a processor that the other process needs;
    if they sleep at once, each region waits for them to wake. Call it before torch is first imported; what the user has
    set in the environment stays. ``ACTIVE`` matters where a process has more threads than processors: without it
    libgomp then does not spin at all.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN))
