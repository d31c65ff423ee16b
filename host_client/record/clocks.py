"""The agreement of two clocks, recorded at intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from host_client.clock import ClockAgreement
from host_client.record.events import ClockAgreed, Event

EVERY = 0.25
"""Seconds from one note to the next at least; the rate is known, so that a few keep device times in their places."""


class ClockNotes:
    """Records the agreement of the clocks of host and device: at once in a new epoch, and then a few times a second.

    Args:
        record: called with each agreement.
    """

    def __init__(self, record: Callable[[Event], None]) -> None:
        self._record = record
        self._epoch: int | None = None
        self._due = -math.inf

    def note(self, clock: ClockAgreement) -> None:
        """Record the agreement as it is now, if that is due."""
        now = time.monotonic()
        if clock.epoch == self._epoch and now < self._due:
            return
        self._epoch, self._due = clock.epoch, now + EVERY
        self._record(ClockAgreed(now, float(clock.device_time(now)), clock.epoch, clock.rate, clock.error_at(now)))
