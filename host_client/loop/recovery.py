"""Getting a lost device back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from host_client.loop.policies import OnLoss
from host_client.record.events import DeviceBack, DeviceLost, Event
from spu_link.errors import (
    DeadlineExceeded,
    DeviceBusy,
    DeviceFault,
    DeviceHalted,
    DeviceUnavailable,
    SessionExpired,
    SessionRequired,
    SpuError,
    StaleSession,
)

if TYPE_CHECKING:
    from host_client.aio import Session

log = logging.getLogger(__name__)

LOST = (
    DeadlineExceeded,
    DeviceBusy,
    DeviceFault,
    DeviceHalted,
    DeviceUnavailable,
    SessionExpired,
    SessionRequired,
    StaleSession,
)
"""Errors after which there is no device until a new session is there."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Pauses between two attempts to open a session, in seconds: random, growing from the first to the longest."""


class Recovery:
    """Knows whether the device is lost, and opens sessions until it is back.

    A device that was halted is not taken again: somebody has stopped it, and only a person starts it again.

    Args:
        session: what is opened again.
        on_loss: the policy; with ``"raise"`` the caller gets the error, and sees to it.
        counts: counts ``"lost"`` and ``"reconnected"``.
        record: called with both events.

    Attributes:
        lost: why there is no device; None while there is one, as far as known.
    """

    def __init__(
        self, session: Session, on_loss: OnLoss, counts: Counter[str], record: Callable[[Event], None]
    ) -> None:
        self.lost: SpuError | None = None
        self._session = session
        self._on_loss = on_loss
        self._counts = counts
        self._record = record
        self._attempts: asyncio.Task[None] | None = None

    def lose(self, error: SpuError) -> None:
        """Note that the device is gone; begin to reopen it, unless the policy leaves that to the caller."""
        self._counts["lost"] += 1
        self._record(DeviceLost(time.monotonic(), f"{type(error).__name__}: {error}", self._on_loss))
        log.warning("the device is lost (on_loss=%r): %s", self._on_loss, str(error))
        if self._on_loss == "raise":
            return
        self.lost = error
        if not isinstance(error, DeviceHalted):
            self._attempts = asyncio.create_task(self._reopen())

    async def wait_back(self, timeout: float) -> None:
        """Wait until the device has recovered.

        Raises:
            SpuError: why it is lost, when it is not back in time or nobody tries.
        """
        if self._attempts is not None:
            await asyncio.wait([self._attempts], timeout=timeout)
        self.check()

    def check(self) -> None:
        """Raise why the device is lost, if it is."""
        if self.lost is not None:
            raise self.lost.with_traceback(None)  # it may be raised many times, and would keep all their frames

    async def close(self) -> None:
        """Give up."""
        if self._attempts is not None:
            self._attempts.cancel()
            await asyncio.gather(self._attempts, return_exceptions=True)

    async def _reopen(self) -> None:
        pause = wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)
        async for attempt in AsyncRetrying(wait=pause, retry=retry_if_exception_type(SpuError)):
            with attempt:
                await self._session.reopen()
        self.lost = None
        self._counts["reconnected"] += 1
        self._record(DeviceBack(time.monotonic(), self._session.epoch))
        log.warning("the device is back, in epoch %d", self._session.epoch)
