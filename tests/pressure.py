"""Time in which somebody on this machine had to wait for a processor: what a bound on wall time must allow for."""

from __future__ import annotations

import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")


def waiting_seconds() -> float:
    """Seconds so far in which some task was ready to run and did not; 0 where Linux does not count them."""
    if not PRESSURE.exists():
        return 0.0
    some = PRESSURE.read_text().splitlines()[0]
    return int(some.rpartition("total=")[2]) / 1e6


class Undisturbed:
    """A stopwatch that stands still while somebody has to wait for a processor."""

    def __init__(self) -> None:
        self._begun, self._waiting = time.monotonic(), waiting_seconds()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._begun - (waiting_seconds() - self._waiting)
