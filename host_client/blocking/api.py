"""The classes of the blocking API."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from host_client import aio, loop
from host_client.blocking.facade import Attribute, ContextFacade, Facade, async_to_sync
from host_client.blocking.thread import client_thread, follow, post, wait
from host_client.capacity import Capacity, Info
from host_client.clock import ClockAgreement
from host_client.embeddings import Embedding
from host_client.loop import OnLoss
from host_client.record.events import Event
from spu_link.device_time import DeviceTime
from spu_link.errors import SpuError
from spu_link.operators import Operator
from spu_link.precision import Precision


class Upload(ContextFacade[aio.Upload]):
    """A program on its way: the operator first, then the rest. Made by `Session.upload`; see `host_client.aio.Upload`.

    Bytes go in the background. One call of `program`, `solve` or `abandon` ends it, or the end of a ``with`` block.
    """

    _closing = "abandon"

    operator = Attribute[Operator]("F.")
    sent_bytes = Attribute[int]()

    program = async_to_sync(aio.Upload.program)
    solve = async_to_sync(aio.Upload.solve)

    def abandon(self) -> None:
        """Break off, unless it is over. Nothing is left behind, and the old program goes on."""
        self.close()


class Feed(Facade[loop.Feed]):
    """Programs to a device in the background, and its readings back. Made by `Session.feed`.

    See `host_client.loop.Feed`.
    """

    counts = Attribute[Mapping[str, int]]('Number of events of each kind, by name, such as ``"uploads"``.')
    lost = Attribute[SpuError | None]()
    free_from = Attribute[float | None]()

    wait_back = async_to_sync(loop.Feed.wait_back)
    exchange = async_to_sync(loop.Feed.exchange)
    resume = async_to_sync(loop.Feed.resume)

    def begin(self, operator: Operator, precision: Precision | None, *, copied: bool) -> None:
        """Send an operator ahead of the rest, if nothing else is under way."""
        follow([operator])
        post(self.aio.begin, operator, precision, copied=copied)

    def abandon(self) -> None:
        """Abandon what has been sent ahead: no program will follow for it."""
        post(self.aio.abandon)


class Session(Facade[aio.Session]):
    """Exclusive use of a device, kept alive by a heartbeat. Made by `Spu.session`.

    Attributes:
        spu: the connection.
    """

    def __init__(self, behind: aio.Session, spu: Spu) -> None:
        super().__init__(behind)
        self.spu = spu

    capacity = Attribute[Capacity]()
    embedding = Attribute[Embedding | None]()
    uploaded_bytes = Attribute[int]()
    bytes_by_path = Attribute[Mapping[str, int]](
        'Bytes of tensors uploaded so far, by how they went: ``"shared-memory"``, ``"grpc"``, ``"in-process"``.'
    )
    device_time = Attribute[DeviceTime]("Newest device time known from the device's answers, in τ.")
    epoch = Attribute[int]()
    clock = Attribute[ClockAgreement]("Agreement of the host's clock with device time; the heartbeat keeps it fresh.")

    program = async_to_sync(aio.Session.program)
    solve = async_to_sync(aio.Session.solve)
    read = async_to_sync(aio.Session.read)
    advance = async_to_sync(aio.Session.advance)
    save_state = async_to_sync(aio.Session.save_state)
    restore_state = async_to_sync(aio.Session.restore_state)
    upload = async_to_sync(aio.Session.upload, Upload)

    def feed(
        self,
        *,
        on_loss: OnLoss = "raise",
        record: Callable[[Event], None] | None = None,
        counts: Counter[str] | None = None,
    ) -> Feed:
        """Feed the device in the background: see `host_client.loop.Feed`. The feed is closed with the session."""
        session, listener = self.aio, partial(record or (lambda event: None))
        known = weakref.ref(listener)  # `record` may refer to the facade, which is closed when nobody else refers to it

        def forward(event: Event) -> None:
            if (listen := known()) is not None:
                listen(event)

        async def make_feed() -> Feed:
            return Feed(loop.Feed(session, on_loss=on_loss, record=forward, counts=counts), (self, listener))

        return wait(make_feed)


class Spu(ContextFacade[aio.Spu]):
    """A connection to one device. Made by `connect`."""

    def __init__(self, behind: aio.Spu) -> None:
        super().__init__(behind)
        client_thread().connections.add(behind)

    address = Attribute[str]("Where the connection leads.")
    embedding = Attribute[Embedding | None]()
    rate = Attribute[float]()
    features = Attribute[tuple[str, ...]]()
    at_connect = Attribute[Info]("Description of the device from when the connection was made, or made anew.")

    @property
    def info(self) -> Info:
        """Description and current status of the device."""
        return wait(self.aio.info)

    report = async_to_sync(aio.Spu.report)
    halt = async_to_sync(aio.Spu.halt)
    open_session = async_to_sync(aio.Spu.open_session, Session)

    @contextmanager
    def session(self, *, ttl: float = 10.0, holder: str | None = None) -> Iterator[Session]:
        """Take the device exclusively for the length of a ``with`` block.

        Args:
            ttl: seconds after which the device is free again if this process stops answering.
            holder: name shown to others; default ``user@host:pid``.

        Raises:
            DeviceBusy: while another session lives.
        """
        session = self.open_session(ttl=ttl, holder=holder)
        try:
            yield session
        finally:
            session.close()


def connect(
    address: str | Sequence[str],
    *,
    embedding: Embedding | str | None = None,
    timeout: float = 60.0,
    **device: Any,
) -> Spu:
    """Connect to a device, or to several that work side by side.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT`` of a daemon, or ``inproc:`` for an emulator in this process. Several,
            all with clocks of one kind, for an embedding of several programs.
        embedding: how systems with more parameters than cells are cut: ``"sample"``, ``"block"``, ``"kronecker"`` or an
            `Embedding` of ``host_client.embeddings``; ``"direct"`` or None for a cell for each parameter.
        timeout: deadline of every call, in seconds of wall time, on top of the device time that a call waits for.
        device: options of an ``inproc:`` device, as of ``spu-server serve``: ``clock``, ``rate``, ``tau``, ``seed`` …

    Raises:
        DeviceUnavailable: when no daemon answers there.
        InvalidProgram, ClockMismatch: see `host_client.aio.connect`.
    """

    async def open_connection() -> Spu:  # made there: if the call is interrupted, nobody refers to it, and it is closed
        return Spu(await aio.connect(address, embedding=embedding, timeout=timeout, **device))

    return wait(open_connection)
