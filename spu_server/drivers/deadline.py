"""The time when a driver's answer is due."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress

ANSWER_SECONDS = 1.5
"""Longest that a call may take where the driver has not announced that it takes longer."""


class Deadline:
    """The time when the answer of a process is due, of which the time that it waited for a processor is no part.

    Linux counts that time, for the thread that the calls run on; elsewhere all time is the process's own.

    Args:
        pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self._begun = self._end = -math.inf
        self._counted: int | None = None  # kept open, for it is read twice a call
        with suppress(OSError):
            self._counted = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def allowed(self) -> float:
        """Seconds from the begin of the call to when its answer is due."""
        return self._end - self._begun

    def begin(self, seconds: float) -> None:
        """A call begins; it may take so long, or as long as was said before."""
        self._begun = self._now()
        self._end = max(self._end, self._begun + seconds)

    def extend(self, seconds: float) -> None:
        """It may take so long from now on."""
        self._end = max(self._end, self._now() + seconds)

    def end(self) -> None:
        """The call is answered, and what was said of it is of no meaning any more."""
        self._end = -math.inf

    def left(self) -> float:
        """Seconds until the answer is due; 0 or less when it is overdue."""
        return self._end - self._now()

    def close(self) -> None:
        """Look no more."""
        if self._counted is not None:
            os.close(self._counted)
            self._counted = None

    def _now(self) -> float:
        """Seconds of the process's own time, from any origin."""
        waited = 0.0
        if self._counted is not None:
            with suppress(OSError, IndexError):  # the process has ended, which is reported elsewhere
                waited = int(os.pread(self._counted, 100, 0).split()[1]) / 1e9
        return time.monotonic() - waited
