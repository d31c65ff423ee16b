"""When readings are taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

from host_client.links.base import ReadPlan


@dataclass(frozen=True)
class Schedule:
    """When a program is read, and how long it runs.

    Attributes:
        analog_time: how long a program runs before it is read, in τ.
        readings: how many readings are taken under each program, the first of them after `analog_time`.
        spacing: device time from one of them to the next, in τ.
        delay: least device time between the last of them and the next program's taking hold, in τ.
        period: if given, readings are taken at its multiples instead, whatever is uploaded when, in τ; a program then
            runs for at least `analog_time`.
    """

    analog_time: float
    readings: int = 1
    spacing: float = 0.0
    delay: float = 0.0
    period: float | None = None

    @property
    def length(self) -> float:
        """Device time from a program's taking hold to the last reading that is due under it, in τ."""
        return self.analog_time if self.period is not None else self._after(self.readings - 1)

    def plans(self) -> list[ReadPlan]:
        """The readings that are scheduled with a program."""
        return [ReadPlan(self._after(k)) for k in range(self.readings)] if self.period is None else []

    def plans_from(self, time: float) -> list[ReadPlan]:
        """The readings due under a program that takes hold at `time`, which a stepped clock tells beforehand."""
        if self.period is None:
            return self.plans()
        first, last = math.floor(time / self.period) + 1, math.floor((time + self.analog_time) / self.period)
        return [ReadPlan(max(0.0, k * self.period - time)) for k in range(first, last + 1)]

    def _after(self, k: int) -> float:
        return self.analog_time + k * self.spacing
