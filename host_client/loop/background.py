"""Work that goes on while its owner does something else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """Tasks of one owner, on the running event loop.

    Args:
        failed: told the error that a task ends with, unless it was broken off before that.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken_off: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin with something, and go on."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Break everything off."""
        for task in self._tasks:
            task.cancel()
        self._broken_off |= self._tasks
        self._tasks = set()

    async def over(self) -> None:
        """Wait until nothing is under way, including what begins meanwhile."""
        while under_way := self._tasks | self._broken_off:
            await asyncio.gather(*under_way, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()  # asked for in any case: else asyncio logs it
        if task in self._broken_off:
            self._broken_off.discard(task)
            return
        self._tasks.discard(task)
        if isinstance(error, Exception):
            self._failed(error)
