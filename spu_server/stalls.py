"""Stalls of the event loop: the min time that every client of the daemon has to wait."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import structlog

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 0.005
"""Seconds between two looks at the loop."""

LOOK_BACK_SECONDS = 10.0
"""Seconds that a stall is remembered."""

TOLERABLE_SECONDS = 0.05
"""Longest stall that is not worth a line in the log."""


class Stalls:
    """Sleeps briefly over and over on the running event loop, and notes by how much each sleep was too long."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque()  # (when, seconds): later ones are shorter
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    @property
    def longest(self) -> float:
        """Longest stall of the last 10 seconds, in seconds."""
        while self._recent and self._recent[0][0] < time.monotonic() - LOOK_BACK_SECONDS:
            self._recent.popleft()
        return self._recent[0][1] if self._recent else 0.0

    async def close(self) -> None:
        """Look no more."""
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)

    async def _watch(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            now = time.monotonic()
            self._note(now, now - before - INTERVAL_SECONDS)
            before = now

    def _note(self, when: float, seconds: float) -> None:
        while self._recent and self._recent[-1][1] <= seconds:
            self._recent.pop()
        self._recent.append((when, seconds))
        if self._recent[0][0] < when - LOOK_BACK_SECONDS:
            self._recent.popleft()
        if seconds > TOLERABLE_SECONDS and len(self._recent) == 1:  # the longest of the last 10 seconds
            log.warning("event loop stalled", seconds=round(seconds, 4))
