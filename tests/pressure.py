"""Allowances of tests of time: a machine on which others work as well, and which may stop at any moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tenacity import AttemptManager, Retrying, retry_if_exception_type, stop_after_attempt

PRESSURE = Path("/proc/pressure/cpu")

NAP = 0.005
"""Duration of one sleep of the sleeper, in seconds."""

LATE = 0.02
"""Waking up this much too late is no sign of anything."""


def time_enough(seconds: float, *late: type[Exception]) -> Iterator[tuple[float, AttemptManager]]:
    """Try with a short time first, and with one four times as long while the machine proves too slow for it.

        for ttl, attempt in time_enough(0.3, SessionExpired):
            with attempt, spu.session(ttl=ttl) as session:
                …

    Args:
        seconds: the first time.
        late: how it shows that it was too short; on the fourth time this fails the test.
    """
    for attempt in Retrying(retry=retry_if_exception_type(late), stop=stop_after_attempt(4), reraise=True):
        yield seconds * 4.0 ** (attempt.retry_state.attempt_number - 1), attempt


def waiting_seconds() -> float:
    """Seconds so far in which some task was ready to run and did not; 0 where Linux does not count them."""
    if not PRESSURE.exists():
        return 0.0
    some = PRESSURE.read_text().splitlines()[0]
    return int(some.rpartition("total=")[2]) / 1e6


class Sleeper(threading.Thread):
    """Only sleeps: where it wakes up late, the machine stood still, or this process did."""

    def __init__(self) -> None:
        super().__init__(name="sleeper", daemon=True)
        self._late = 0.0
        self._fell_asleep = time.monotonic()

    def run(self) -> None:
        while True:
            self._fell_asleep = time.monotonic()
            time.sleep(NAP)
            self._late += self._overslept()

    @property
    def late(self) -> float:
        """Seconds so far by which it has been late, those included by which it is late now."""
        return self._late + self._overslept()

    def _overslept(self) -> float:
        late = time.monotonic() - self._fell_asleep - NAP
        return late if late > LATE else 0.0


@cache
def sleeper() -> Sleeper:
    """The one of this process."""
    one = Sleeper()
    one.start()
    return one


class Undisturbed:
    """A stopwatch that stands still while somebody has to wait for a processor, or while everything stands still."""

    def __init__(self) -> None:
        self._begun, self._disturbed = time.monotonic(), self._disturbed_seconds()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._begun - (self._disturbed_seconds() - self._disturbed)

    @staticmethod
    def _disturbed_seconds() -> float:
        return waiting_seconds() + sleeper().late
