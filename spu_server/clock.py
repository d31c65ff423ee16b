"""The two clocks that move device time."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

ClockKind = Literal["free", "stepped"]


class Clock(ABC):
    """Source of device time, in τ from the start of the daemon."""

    kind: ClassVar[ClockKind]
    rate: float
    """τ per second of wall time; 0 on a stepped clock."""

    @abstractmethod
    def now(self) -> float:
        """Device time now."""

    @abstractmethod
    def horizon(self) -> float:
        """Device time up to which events may run now."""

    @abstractmethod
    def reach(self, at: float) -> None:
        """An event at device time `at` runs now."""

    @abstractmethod
    def seconds_until(self, at: float) -> float | None:
        """Wall time until device time `at`; None where no waiting will bring it about."""

    @abstractmethod
    def stop(self) -> None:
        """Nobody waits for a later time any more."""


class FreeClock(Clock):
    """Device time runs with the monotonic clock, whatever the host does.

    Args:
        rate: τ per second of wall time, > 0.
    """

    kind = "free"

    def __init__(self, rate: float) -> None:
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rate is {rate}; a free-running clock needs a positive number of τ per second")
        self.rate = rate
        self._start = time.monotonic()

    def now(self) -> float:
        """Device time now."""
        return (time.monotonic() - self._start) * self.rate

    def horizon(self) -> float:
        """The present."""
        return self.now()

    def reach(self, at: float) -> None:
        """Nothing to do: time passes by itself."""

    def seconds_until(self, at: float) -> float:
        """Wall time until device time `at`."""
        return max(0.0, (at - self.now()) / self.rate)

    def stop(self) -> None:
        """Nothing to do: time passes by itself."""


class SteppedClock(Clock):
    """Device time stands still until it is moved, and then visits every event on the way."""

    kind = "stepped"
    rate = 0.0

    def __init__(self) -> None:
        self._now = 0.0
        self._horizon = 0.0

    def now(self) -> float:
        """Device time of the last event reached."""
        return self._now

    def horizon(self) -> float:
        """Return the device time up to which the clock may go."""
        return self._horizon

    def move(self, duration: float) -> float:
        """Allow device time to go on by `duration`; the new horizon."""
        self._horizon += duration
        return self._horizon

    def move_to(self, at: float) -> None:
        """Allow device time to go on to `at` exactly, if that lies ahead."""
        self._horizon = max(self._horizon, at)

    def reach(self, at: float) -> None:
        """Stand at the event."""
        self._now = max(self._now, at)

    def seconds_until(self, at: float) -> None:
        """No waiting moves a stepped clock."""
        return None

    def stop(self) -> None:
        """Stay where the last event was: a move that was broken off goes no further."""
        self._horizon = self._now
