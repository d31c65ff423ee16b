"""A device that is fed in the background."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from host_client.blocking.facade import Facade, waiting
from host_client.blocking.thread import follow, post, wait
from host_client.loop import Freshness
from host_client.loop import feed as aio_feed
from host_client.loop.arrivals import Arrived
from spu_link.errors import SpuError
from spu_link.operators import Operator
from spu_link.precision import Precision

if TYPE_CHECKING:
    from host_client.blocking.session import Session


class Feed(Facade[aio_feed.Feed]):
    """Programs to a device in the background, and its readings back. Made by `Session.feed`.

    See `host_client.loop.feed.Feed`.
    """

    def __init__(self, feed: aio_feed.Feed, session: Session) -> None:
        super().__init__(feed, feed.close)
        self._session = session  # which lives as long

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened how often."""
        return self._aio.counts

    @property
    def lost(self) -> SpuError | None:
        """Why there is no device now; None while there is."""
        return self._aio.lost

    @property
    def free_from(self) -> float | None:
        """Device time at which the last program has run its schedule, in τ; None before the first."""
        return self._aio.free_from

    back = waiting(aio_feed.Feed.back)

    def begin(self, operator: Operator, precision: Precision | None, *, copied: bool) -> None:
        """Send an operator ahead of the rest, if nothing else is under way."""
        follow([operator])
        post(self._aio.begin, operator, precision, copied=copied)

    def abandon(self) -> None:
        """No hand-over will follow for what has been sent ahead."""
        post(self._aio.abandon)

    def exchange(
        self,
        operator: Operator,
        drive: Tensor,
        *,
        freshness: Freshness,
        timeout: float,
        together: bool = False,
        **options: Any,
    ) -> list[Arrived]:
        """Hand a program over, and take the readings for a step, waiting `timeout` seconds at most.

        Args:
            operator, drive, options: as of `host_client.loop.feed.Feed.hand_over`.
            freshness: which readings will do.
            timeout: longest wait, in seconds.
            together: as of `host_client.loop.feed.Feed.readings`.

        Raises:
            TooStale: when none came in time that will do.
            SpuError: why the device is lost, or has refused a program.
        """
        follow([operator, drive])
        called = partial(
            self._aio.exchange, operator, drive, freshness=freshness, timeout=timeout, together=together, **options
        )
        del operator, drive, options  # an error that somebody keeps would keep them
        try:
            return wait(called)
        finally:
            del called

    def resume(self, free_from: float, operator: Operator | None, sequence: int) -> None:
        """The device's state has been restored. See `host_client.loop.feed.Feed.resume`."""
        feed = self._aio

        async def resume() -> None:
            feed.resume(free_from, operator, sequence)

        wait(resume)
