"""Events in the order of device time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from spu_link.errors import DeviceUnavailable, SpuError
from spu_server.clock import Clock

T = TypeVar("T")


@dataclass(order=True)
class _Event:
    at: float
    order: int
    action: Callable[[float], Awaitable[Any]] = field(compare=False)
    done: asyncio.Future[Any] = field(compare=False)


class Agenda:
    """Runs events one at a time, in the order of (device time, arrival), as far as the clock has come.

    An event gets the device time it was scheduled for, not the time the process got round to it. Cancelling its
    future takes it off the agenda.

    Args:
        clock: what moves device time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: list[_Event] = []
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._runner = asyncio.get_running_loop().create_task(self._run())

    def schedule(self, at: float | None, action: Callable[[float], Awaitable[T]]) -> asyncio.Future[T]:
        """Put an event on the agenda.

        Args:
            at: device time of the event; None for now.
            action: called with the event's device time.

        Returns:
            The action's result, once it has run.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        event = _Event(self._clock.now() if at is None else at, next(self._order), action, done)
        heapq.heappush(self._events, event)
        self._wake.set()
        return done

    def fail_pending(self, error: SpuError) -> None:
        """Take every event that has not begun off the agenda; their waiters get `error`, and time goes no further."""
        events, self._events = self._events, []
        self._clock.stop()
        for event in events:
            _fail(event, error)

    async def close(self) -> None:
        """Stop; pending events fail for those who wait for them, as the daemon goes away."""
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self.fail_pending(DeviceUnavailable("the daemon is stopping"))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            while self._events and self._events[0].at <= self._clock.horizon():
                await self._perform(heapq.heappop(self._events))
            wait = self._clock.seconds_until(self._events[0].at) if self._events else None
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass  # the next event is due

    async def _perform(self, event: _Event) -> None:
        if event.done.done():
            return
        self._clock.reach(event.at)
        try:
            result = await event.action(event.at)
        except asyncio.CancelledError:
            runner = asyncio.current_task()
            stopping = runner is not None and runner.cancelling() > 0
            why = "the daemon is stopping" if stopping else "the driver was ended during this call"
            _fail(event, DeviceUnavailable(why))
            if stopping:
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the waiter
            if not event.done.done():
                event.done.set_exception(error)
        else:
            if not event.done.done():
                event.done.set_result(result)


def _fail(event: _Event, error: SpuError) -> None:
    """Raise an error where somebody waits for an event; that nobody does, as at the end, is no mistake."""
    if not event.done.done():
        event.done.set_exception(error)
        event.done.exception()
