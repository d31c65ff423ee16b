"""A connection to a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from host_client import aio
from host_client.blocking.facade import Facade, waiting
from host_client.blocking.session import Session
from host_client.blocking.thread import client_thread, wait
from host_client.links.base import Info

if TYPE_CHECKING:
    from host_client.embeddings import Embedding


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
        device: options of an ``inproc:`` device: ``driver``, ``clock``, ``rate``, ``tau``, ``seed``, ``cells``,
            ``max_bytes``, ``compute``, ``record``, as of ``spu-server serve``.

    Raises:
        DeviceUnavailable: when no daemon answers there.
        InvalidProgram, ClockMismatch: see `host_client.aio.connect`.
    """

    async def connected() -> Spu:  # made there: if the call is interrupted, nobody refers to it, and it is closed
        return Spu(await aio.connect(address, embedding=embedding, timeout=timeout, **device))

    return wait(connected)


class Spu(Facade[aio.Spu]):
    """A connection to one device. Made by `connect`."""

    def __init__(self, connection: aio.Spu) -> None:
        super().__init__(connection, connection.close)
        client_thread().connections.add(connection)

    @property
    def address(self) -> str:
        """Where the connection leads."""
        return self._aio.address

    @property
    def embedding(self) -> Embedding | None:
        """How sessions cut systems for devices with fewer cells than parameters; None for a cell for each parameter."""
        return self._aio.embedding

    @property
    def rate(self) -> float:
        """τ per second of wall time; 0 on a stepped clock."""
        return self._aio.rate

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what the device can do."""
        return self._aio.features

    @property
    def at_connect(self) -> Info:
        """What the device was when the connection was made, or made anew; asks nobody."""
        return self._aio.at_connect

    @property
    def info(self) -> Info:
        """What the device is and how it stands now."""
        return wait(self._aio.info)

    report = waiting(aio.Spu.report)
    halt = waiting(aio.Spu.halt)

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

    def open_session(self, *, ttl: float = 10.0, holder: str | None = None) -> Session:
        """Take the device until `Session.close`.

        Raises:
            DeviceBusy: while another session lives.
        """
        connection = self._aio

        async def opened() -> Session:
            return Session(self, await connection.open_session(ttl=ttl, holder=holder))

        return wait(opened)

    def __enter__(self) -> Self:
        """The connection itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()
