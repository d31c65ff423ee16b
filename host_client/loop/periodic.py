"""Readings at the multiples of a period in device time, whatever is uploaded when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from host_client.loop.arrivals import Arrivals
from host_client.loop.recovery import LOST
from spu_link.errors import ReadInPast, SpuError

if TYPE_CHECKING:
    from host_client.aio import Session

OUTSTANDING = 4
"""Periodic readings asked for ahead: so many tasks run `read_each`."""

MARGIN_SECONDS = 1e-3
"""How far ahead a periodic reading is asked for at least, beyond the error of the clock."""


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
        arrivals: told of readings, and of errors that the next reading may not have.
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
