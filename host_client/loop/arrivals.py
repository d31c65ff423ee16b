"""Readings as they come, until a step takes those that are fresh enough for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from host_client.loop.policies import Freshness, NoOlderThan, TooStale
from host_client.loop.recovery import Recovery
from host_client.record.events import Event, Read
from spu_link.errors import SessionClosed
from spu_link.program import Applied, Reading

if TYPE_CHECKING:
    from host_client.aio import Session

KEPT_READINGS = 64
"""Max number of readings that wait for a step; older ones are forgotten."""

KNOWN_PROGRAMS = 256
"""Max number of programs whose readings are distinguished."""


@dataclass(frozen=True)
class Arrived:
    """A reading that has come.

    Attributes:
        number: its number in the record, from 1.
        program: number of the program under which it was taken, as `Feed.submit` returned it.
        reading: the reading.
    """

    number: int
    program: int
    reading: Reading


class Arrivals:
    """Readings that have come and wait for a step, and errors that the next step raises.

    Args:
        session: the device.
        recovery: knows whether the device is lost.
        counts: counts ``"readings"``.
        record: called with each.

    Attributes:
        newest: the newest reading; None before the first.
    """

    def __init__(
        self, session: Session, recovery: Recovery, counts: Counter[str], record: Callable[[Event], None]
    ) -> None:
        self.newest: Arrived | None = None
        self._session, self._recovery, self._counts, self._record = session, recovery, counts, record
        self._numbers = count(1)
        self._programs: OrderedDict[int, int] = OrderedDict()  # number as of `Feed.submit` by the sequence
        self._finished = 0  # number of the newest program whose readings have all come, or never will
        self._refused: Exception | None = None
        self._closed = False
        self._waiting: deque[Arrived] = deque(maxlen=KEPT_READINGS)
        self._complete: list[Arrived] = []  # the readings of the newest program of which all have come
        self._changed = asyncio.Event()

    def expect(self, applied: Applied, number: int) -> None:
        """Note that a program has taken effect: readings of its sequence are readings of it."""
        self._programs[applied.sequence] = number
        while len(self._programs) > KNOWN_PROGRAMS:
            self._programs.popitem(last=False)

    def add(self, reading: Reading, asked: float | None) -> None:
        """Add a reading, asked for at device time `asked`."""
        received = time.monotonic()
        arrived = Arrived(next(self._numbers), self._programs.get(reading.sequence, 0), reading)
        self._counts["readings"] += 1
        self._record(
            Read(
                arrived.number,
                reading.epoch,
                reading.sequence,
                asked,
                reading.time,
                reading.age,
                reading.window,
                reading.sent,
                received,
            )
        )
        self._waiting.append(arrived)
        if self.newest is None or arrived.program >= self.newest.program:
            self.newest = arrived
        self._changed.set()

    def finish(self, number: int) -> None:
        """Note that all readings of a program, and of those before it, have come or never will."""
        self._finished = max(self._finished, number)
        self._complete = [arrived for arrived in self._waiting if arrived.program == number] or self._complete
        self._changed.set()

    def refuse(self, error: Exception) -> None:
        """Raise an error in the next call of `take`."""
        self._refused = error
        self._changed.set()

    def forget(self) -> None:
        """Forget what has come: it is of a device that is gone."""
        self.newest = None
        self._waiting.clear()
        self._complete.clear()
        self._programs.clear()
        self._changed.set()

    def close(self) -> None:
        """Make every call of `take`, under way or later, raise `SessionClosed`."""
        self._closed = True
        self.forget()

    async def take(
        self, number: int, freshness: Freshness, *, deadline: float, timeout: float, together: bool
    ) -> list[Arrived]:
        """Return what `Feed.readings` returns, until a time of the event loop; `timeout` is the wait in all."""
        while True:
            self._changed.clear()
            if self._closed:
                raise closed_error(self._session)
            self._recovery.check()
            if self._refused is not None:
                refused, self._refused = self._refused, None
                raise refused.with_traceback(None)
            if together:
                while self._waiting and self._waiting[0].program <= self._finished:
                    self._waiting.popleft()
                if self._complete and self._is_fresh(self._complete[-1], number, freshness):
                    return list(self._complete)
            elif self.newest is not None and self._is_fresh(self.newest, number, freshness):
                own = [arrived for arrived in self._waiting if freshness != "program" or arrived.program >= number]
                self._waiting.clear()
                return own or [self.newest]
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                found = "none at all" if self.newest is None else f"one of program {self.newest.program}, now {number}"
                raise TooStale(
                    f"no reading came within {timeout:g} s that is fresh enough for a step ({freshness})",
                    field="freshness",
                    found=found,
                    expected=str(freshness),
                ) from None

    def _is_fresh(self, newest: Arrived, number: int, freshness: Freshness) -> bool:
        if self._session.spu.clock == "stepped" and self._finished < number:
            return False  # so that nothing depends on how fast the host is
        if freshness == "program":
            return newest.program >= number and self._finished >= number
        if freshness == "newest":
            return True
        assert isinstance(freshness, NoOlderThan)
        clock = self._session.clock
        age = clock.device_time() - newest.reading.time
        return (
            (freshness.programs is None or newest.program >= number - freshness.programs)
            and (freshness.tau is None or age <= freshness.tau)
            and (freshness.milliseconds is None or age <= clock.rate * 1e-3 * freshness.milliseconds)
        )


def closed_error(session: Session) -> SessionClosed:
    """Return the error for whoever uses a feed that has been closed."""
    return SessionClosed(
        f"the feed of {session.spu.address} was closed in this process, with its session or by itself; open a new "
        "session with spu.session(), and set optimizer.session to it to go on with an optimizer",
        field="session",
        found="closed",
        expected="a session that is open",
    )
