"""A connection to a device."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self
from weakref import WeakSet

from host_client.aio.session import Session
from host_client.capacity import Info
from host_client.embeddings import Embedding, embedding_of
from host_client.links.base import Link
from host_client.links.embedded import EmbeddedLink
from host_client.links.reload import renew_grpc
from host_client.ownership import Owned
from spu_link.addresses import is_address, path_fault, socket_path
from spu_link.errors import ClockMismatch, mismatch


async def connect(
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
        device: options of an ``inproc:`` device, as in `DeviceSettings`: ``clock``, ``rate``, ``tau``, ``seed`` … Of
            several each has a seed of its own, from `seed` on.

    Raises:
        DeviceUnavailable: when no daemon answers there.
        InvalidProgram: when an address is of no known form, for a wrong option of an ``inproc:`` device, for an
            unknown embedding, or for several devices where the embedding has no use for them.
        ClockMismatch: when the clocks of several devices are of different kinds.
    """
    chosen = embedding_of(embedding)
    addresses = [address] if isinstance(address, str) else list(address)
    if not addresses or (len(addresses) > 1 and (chosen is None or chosen.single)):
        name = "direct" if chosen is None else chosen.name
        raise mismatch("address", addresses, f"one: embedding {name!r} is a single program, on a single device")
    async with AsyncExitStack() as stack:
        links = []
        for number, one in enumerate(addresses):
            own = device | {"seed": device.get("seed", 0) + number} if number and one == "inproc:" else device
            links.append(await _open_link(one, own))
            links[-1].timeout = timeout
            stack.push_async_callback(links[-1].close)
        link = links[0] if chosen is None else EmbeddedLink(links, chosen)
        spu = Spu(link, await link.info(timeout=timeout))
        stack.pop_all()
    return spu


async def _open_link(address: str, device: dict[str, Any]) -> Link:
    if address == "inproc:":
        from host_client.links.inproc import InprocLink

        return await InprocLink.open(**device)
    if not is_address(address):
        raise mismatch("address", repr(address), "unix:PATH, HOST:PORT or inproc:")
    if fault := path_fault(socket_path(address) or ""):
        raise mismatch("address", repr(address), f"another path: this one {fault}")
    if device:
        raise TypeError(f"{', '.join(device)}: options of an inproc: device; a daemon has its own")
    renew_grpc()
    from host_client.links.remote import RemoteLink

    return RemoteLink(address)


class Spu(Owned):
    """A connection to one device, or to several that one embedding makes one of. Made by `connect`.

    Attributes:
        address: where it leads.
        timeout: deadline of every call, in seconds of wall time.
        at_connect: description of the device from when the connection was made, or made anew.
    """

    def __init__(self, link: Link, info: Info) -> None:
        self.address = link.address
        self.timeout = link.timeout
        self._way = link
        self._sessions: WeakSet[Session] = WeakSet()
        self.at_connect = info

    @property
    def link(self) -> Link:
        """The way to the device.

        Raises:
            WrongProcess: in a forked child.
        """
        self.check_process()
        return self._way

    @property
    def embedding(self) -> Embedding | None:
        """Embedding of systems in devices with fewer cells than parameters; None for a cell for each parameter."""
        return self._way.embedding

    @property
    def closed(self) -> bool:
        """True if `close` has been called."""
        return self._way.closed

    @property
    def clock(self) -> str:
        """Kind of the device's clock: ``"free"`` or ``"stepped"``."""
        return self.at_connect.clock

    @property
    def rate(self) -> float:
        """τ per second of wall time; 0 on a stepped clock."""
        return self.at_connect.rate

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what the device can do."""
        return self.at_connect.features

    async def renew(self) -> None:
        """Ask again what the device is: another daemon may answer at the address.

        Raises:
            ClockMismatch: when its clock is of another kind now.
        """
        info = await self.info()
        if info.clock != self.clock:
            raise ClockMismatch(
                f"the device at {self.address} had a {self.clock} clock and has a {info.clock} clock now; connect anew",
                field="clock",
                found=info.clock,
                expected=self.clock,
            )
        self.at_connect = info

    async def info(self) -> Info:
        """Return the description and current status of the device."""
        return await self.link.info(timeout=self.timeout)

    async def report(self) -> dict[str, float]:
        """Return counts since the device's driver was opened, by name; empty where it counts nothing.

        Of the drivers ``emulator`` and ``analog``: modelled seconds and joules; of ``analog`` also values clipped by
        converters and rails. Of several devices the sums.
        """
        return await self.link.report(timeout=self.timeout)

    async def halt(self, reason: str = "") -> float:
        """Stop the device at once, or all of several, whoever holds them; the device time of the halt.

        Raises:
            SpuError: when one of them did not answer; the others are stopped all the same.
        """
        return await self.link.halt(reason, timeout=self.timeout)

    @asynccontextmanager
    async def session(self, *, ttl: float = 10.0, holder: str | None = None) -> AsyncIterator[Session]:
        """Take the device exclusively for the length of a ``with`` block.

        Args:
            ttl: seconds after which the device is free again if this process stops answering.
            holder: name shown to others; default ``user@host:pid``.

        Raises:
            DeviceBusy: while another session lives.
        """
        session = await self.open_session(ttl=ttl, holder=holder)
        try:
            yield session
        finally:
            await session.close()

    async def open_session(self, *, ttl: float = 10.0, holder: str | None = None) -> Session:
        """Take the device until `Session.close`.

        Raises:
            DeviceBusy: while another session lives.
        """
        holder = holder or f"{os.environ.get('USER', 'user')}@{socket.gethostname()}:{os.getpid()}"
        session = Session(self, await self.link.take(holder, ttl, Counter(), timeout=self.timeout), ttl, holder)
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        """Close the connection, and the sessions on it that are still open."""
        link = self.link
        link.closed = True
        sessions = (session.close() for session in list(self._sessions))
        ended = await asyncio.gather(*sessions, return_exceptions=True)
        await link.close()
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def __aenter__(self) -> Self:
        """The connection itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()
