"""When readings are taken: with a program, or at the multiples of a period."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from host_client.loop.arrivals import Arrivals
from host_client.loop.recovery import LOST
from spu_link.errors import ReadInPast, SpuError
from spu_link.program import ReadPlan, Schedule

if TYPE_CHECKING:
    from host_client.aio import Session

OUTSTANDING = 4
"""Periodic readings asked for ahead: so many tasks run `read_each`."""

MARGIN_SECONDS = 1e-3
"""Min time by which a periodic reading is asked for ahead, beyond the error of the clock, in seconds."""


@dataclass(frozen=True)
class Sampling:
    """How long programs run, and when they are read.

    Attributes:
        analog_time: how long a program runs before it is read, in τ.
        readings: how many readings are taken under each program, the first of them after `analog_time`.
        spacing: device time from one of them to the next, in τ.
        delay: min device time from the last of them until the next program takes effect, in τ.
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
        """Device time from the instant a program takes effect to the last reading that is due under it, in τ."""
        return self.analog_time + (0.0 if self.period is not None else (self.readings - 1) * self.spacing)

    def schedule(self, now: float | None, free_from: float | None) -> Schedule:
        """Return the schedule of one program.

        Args:
            now: device time, if the clock is a stepped one, on which periodic readings are scheduled with the program.
            free_from: device time at which the program before has run its schedule, in τ.
        """
        # That of a restored program may lie before the device's time began.
        not_before = None if free_from is None else max(0.0, free_from + self.delay)
        times: Iterable[float] = ()
        if self.period is None:
            times = (self.analog_time + k * self.spacing for k in range(self.readings))
        elif now is not None:
            now = max(now, not_before or 0.0)
            first, last = math.floor(now / self.period) + 1, math.floor((now + self.analog_time) / self.period)
            times = (max(0.0, k * self.period - now) for k in range(first, last + 1))
        return Schedule(tuple(map(ReadPlan, times)), self.length, not_before)


def multiples(session: Session, period: float) -> Iterator[float]:
    """Multiples of `period`, in τ, each as it is asked for: the next one that is still far enough ahead."""
    k = 0
    while True:
        clock = session.clock
        soonest = clock.device_time() + clock.rate * (clock.error + MARGIN_SECONDS)
        k = max(k + 1, math.ceil(soonest / period))
        yield k * period


async def read_each(session: Session, times: Iterator[float], arrivals: Arrivals, counts: Counter[str]) -> None:
    """Read at each time in turn; several tasks may share the times.

    Args:
        session: the device.
        times: device times, in τ.
        arrivals: receives readings, and errors that the next reading may not have.
        counts: counts ``"missed"``, the readings whose time had passed.

    Raises:
        SpuError: of `LOST`, when the device is gone.
    """
    for at in times:
        try:
            arrivals.add(await session.read(at), at)
        except ReadInPast:
            counts["missed"] += 1
        except LOST:
            raise
        except SpuError as error:
            arrivals.refuse(error)
