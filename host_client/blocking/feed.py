"""A device that is fed in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from host_client.blocking.facade import Facade, waiting
from host_client.blocking.thread import follow, post, wait
from host_client.loop import feed as aio_feed
from host_client.record.events import Event
from spu_link.errors import SpuError
from spu_link.operators import Operator
from spu_link.precision import Precision

if TYPE_CHECKING:
    from host_client.blocking.session import Session


class Listener:
    """Holds the function that a feed reports events to, which may refer to the feed's facade.

    The client's loop refers to it weakly, so that a facade nobody else refers to is closed.
    """

    def __init__(self, record: Callable[[Event], None]) -> None:
        self.record = record


class Feed(Facade[aio_feed.Feed]):
    """Programs to a device in the background, and its readings back. Made by `Session.feed`.

    See `host_client.loop.feed.Feed`.
    """

    def __init__(self, feed: aio_feed.Feed, session: Session, listener: Listener | None) -> None:
        super().__init__(feed, feed.close)
        self._session, self._listener = session, listener  # which live as long

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

    exchange = waiting(aio_feed.Feed.exchange)

    def resume(self, free_from: float, operator: Operator | None, sequence: int) -> None:
        """The device's state has been restored. See `host_client.loop.feed.Feed.resume`."""
        feed = self._aio

        async def resume() -> None:
            feed.resume(free_from, operator, sequence)

        wait(resume)
