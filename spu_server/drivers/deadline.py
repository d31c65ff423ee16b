"""The time when a driver's answer is due."""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress

ANSWER_SECONDS = 1.5
"""Timeout of a call where the driver has not announced that it takes longer, in seconds."""


class Deadline:
    """The time when the answer of a process is due.

    The time that it waited for a processor is no part of it, nor is the time that this thread waited, which sends the
    call and receives the answer. Linux counts both; elsewhere all time is the process's own.

    Args:
        pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self._begun = self._end = -math.inf
        self._counted: list[int] = []  # kept open, for they are read twice a call
        for path in (f"/proc/{pid}/schedstat", f"/proc/self/task/{threading.get_native_id()}/schedstat"):
            with suppress(OSError):
                self._counted.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    @property
    def allowed(self) -> float:
        """Seconds from the begin of the call to when its answer is due."""
        return self._end - self._begun

    def begin(self, seconds: float) -> None:
        """Begin a call; it may take so long, or as long as was said before."""
        self._begun = self._now()
        self._end = max(self._end, self._begun + seconds)

    def extend(self, seconds: float) -> None:
        """It may take so long from now on."""
        self._end = max(self._end, self._now() + seconds)

    def end(self) -> None:
        """End a call: it is answered, and what was announced of it has no meaning any more."""
        self._end = -math.inf

    def seconds_left(self) -> float:
        """Seconds until the answer is due; 0 or less when it is overdue."""
        return self._end - self._now()

    def close(self) -> None:
        """Look no more."""
        while self._counted:
            os.close(self._counted.pop())

    def _now(self) -> float:
        """Seconds of the process's own time, from any origin."""
        waited = 0
        for counted in self._counted:
            with suppress(OSError, IndexError):  # the process has ended, which is reported elsewhere
                waited += int(os.pread(counted, 100, 0).split()[1])
        return time.monotonic() - waited / 1e9
