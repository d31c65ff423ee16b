"""A connection to a device."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from host_client.aio.session import Session
from host_client.clock import ClockAgreement, Exchange
from host_client.forked import Owned, renew_grpc
from host_client.links.base import Capacity, Info, Link
from spu_link.addresses import is_address, path_fault, socket_path
from spu_link.errors import ClockMismatch, SpuError
from spu_link.operators.base import mismatch
from tngd.spu.v1 import spu_pb2 as pb

if TYPE_CHECKING:
    from host_client.embeddings import Embedding

EXCHANGES = 4
"""Questions after the device's time when a session opens; each heartbeat asks once more."""

GOODBYE_SECONDS = 1.0
"""Longest wait to give a device back after a call on it has failed already."""


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
        device: options of an ``inproc:`` device, as in `InprocLink.open`: ``clock``, ``rate``, ``tau``, ``seed`` … Of
            several each has a seed of its own, from `seed` on.

    Raises:
        DeviceUnavailable: when no daemon answers there.
        InvalidProgram: when an address is of no known form, for an unknown embedding, or for several devices where the
            embedding has no use for them.
        ClockMismatch: when the clocks of several devices are of different kinds.
    """
    from host_client.embeddings.named import embedding_of  # which imports the optimizers, and these this module

    chosen = embedding_of(embedding)
    addresses = [address] if isinstance(address, str) else list(address)
    if not addresses or (len(addresses) > 1 and (chosen is None or chosen.single)):
        name = "direct" if chosen is None else chosen.name
        raise mismatch("address", addresses, f"one: embedding {name!r} is a single program, on a single device")
    async with AsyncExitStack() as stack:
        spus: list[Spu] = []
        for number, one in enumerate(addresses):
            own = device | {"seed": device.get("seed", 0) + number} if number and one == "inproc:" else device
            spus.append(await stack.enter_async_context(await _connect(one, timeout, own)))
        for other in spus[1:]:
            if other.clock != spus[0].clock:
                raise ClockMismatch(
                    f"{other.address} has a {other.clock} clock, {spus[0].address} a {spus[0].clock} one; devices side "
                    "by side need clocks of one kind",
                    field="clock",
                    found=other.clock,
                    expected=spus[0].clock,
                )
        spus[0]._embed(chosen, spus[1:])
        stack.pop_all()
    return spus[0]


async def _connect(address: str, timeout: float, device: dict[str, Any]) -> Spu:
    if address == "inproc:":
        from host_client.links.inproc import InprocLink

        link: Link = await InprocLink.open(**device)
    elif is_address(address):
        if fault := path_fault(socket_path(address) or ""):
            raise mismatch("address", repr(address), f"another path: this one {fault}")
        if device:
            raise TypeError(f"{', '.join(device)}: options of an inproc: device; a daemon has its own")
        renew_grpc()
        from host_client.links.remote import RemoteLink

        link = RemoteLink(address)
    else:
        raise mismatch("address", repr(address), "unix:PATH, HOST:PORT or inproc:")
    try:
        return Spu(link, await link.info(timeout=timeout), timeout)
    except BaseException:
        await link.close()
        raise


class Spu(Owned):
    """A connection to one device. Made by `connect`.

    Attributes:
        address: where it leads.
        timeout: deadline of every call, in seconds of wall time.
        closed: whether `close` has been called.
    """

    def __init__(self, link: Link, info: Info, timeout: float) -> None:
        self.address = link.address
        self.timeout = timeout
        self.closed = False
        self._way = link
        self._sessions: WeakSet[Session] = WeakSet()
        self._at_connect = info
        self._embedding: Embedding | None = None
        self._beside: list[Spu] = []

    @property
    def _link(self) -> Link:
        """The way to the device.

        Raises:
            WrongProcess: in a forked child.
        """
        self.check_process()
        return self._way

    def _embed(self, embedding: Embedding | None, beside: Sequence[Spu]) -> None:
        """Open sessions under an embedding from now on, with other devices, which are closed with this one."""
        self._embedding, self._beside = embedding, list(beside)

    @property
    def embedding(self) -> Embedding | None:
        """How sessions cut systems for devices with fewer cells than parameters; None for a cell for each parameter."""
        return self._embedding

    @property
    def clock(self) -> str:
        """Kind of the device's clock: ``"free"`` or ``"stepped"``."""
        return self._at_connect.clock

    @property
    def rate(self) -> float:
        """τ per second of wall time; 0 on a stepped clock."""
        return self._at_connect.rate

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what the device can do."""
        return self._at_connect.features

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
        self._at_connect = info

    @property
    def capacity(self) -> Capacity:
        """What the device can hold."""
        here = self.address.startswith(("unix:", "inproc:"))
        return Capacity(self._at_connect.max_upload_bytes, self._at_connect.cells, here)

    @property
    def at_connect(self) -> Info:
        """What the device was when the connection was made, or made anew; asks nobody."""
        return self._at_connect

    async def info(self) -> Info:
        """What the device is and how it stands now."""
        return await self._link.info(timeout=self.timeout)

    async def report(self) -> dict[str, float]:
        """What has happened on the device since its driver was opened, in named numbers; empty where it counts nothing.

        Of the drivers ``emulator`` and ``analog``: modelled seconds and joules; of ``analog`` also values clipped by
        converters and rails. Of several devices the sums.
        """
        reports = [await self._link.report(timeout=self.timeout), *[await other.report() for other in self._beside]]
        return {name: sum(report.get(name, 0.0) for report in reports) for name in reports[0]}

    async def halt(self, reason: str = "") -> float:
        """Stop the device at once, and all beside it, whoever holds them; the device time of the halt.

        Raises:
            SpuError: when one of them did not answer; the others are stopped all the same.
        """
        beside = (other.halt(reason) for other in self._beside)
        times = await asyncio.gather(self._link.halt(reason, timeout=self.timeout), *beside, return_exceptions=True)
        for time in times:
            if isinstance(time, BaseException):
                raise time
        return float(times[0])  # type: ignore[arg-type]

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
        if self._embedding is None:
            session = Session(*await self._open(ttl, holder))
        else:
            session = await self._open_embedded(self._embedding, ttl, holder)
        self._sessions.add(session)
        return session

    async def _open_embedded(self, embedding: Embedding, ttl: float, holder: str | None) -> Session:
        from host_client.embeddings.session import EmbeddedSession

        async with AsyncExitStack() as stack:
            beside = []
            for spu in self._beside:
                beside.append(await spu.open_session(ttl=ttl, holder=holder))
                stack.push_async_callback(beside[-1].close)
            opened = await self._open(ttl, holder)
            stack.pop_all()
        return EmbeddedSession(*opened, embedding=embedding, beside=beside)

    async def _open(
        self, ttl: float, holder: str | None
    ) -> tuple[Spu, Link, pb.SessionRef, float, str, ClockAgreement]:
        """The arguments of a session."""
        holder = holder or f"{os.environ.get('USER', 'user')}@{socket.gethostname()}:{os.getpid()}"
        deadline = asyncio.get_running_loop().time() + self.timeout
        ref = await self._link.open_session(holder, ttl, timeout=self.timeout)
        try:
            clock = await self._agree(deadline)
        except BaseException:
            with suppress(SpuError):
                await self._link.close_session(ref, timeout=min(self.timeout, GOODBYE_SECONDS))
            raise
        return self, self._link, ref, ttl, holder, clock

    async def _agree(self, deadline: float) -> ClockAgreement:
        """Compare clocks; `deadline` is in seconds of the loop's clock."""

        async def asked() -> Exchange:
            return await self._link.time(timeout=max(0.0, deadline - asyncio.get_running_loop().time()))

        clock = ClockAgreement(await asked())
        for _ in range(EXCHANGES - 1):
            clock.add(await asked())
        return clock

    async def close(self) -> None:
        """Close the connection, and the sessions on it that are still open."""
        self.check_process()
        self.closed = True
        sessions = (session.close() for session in list(self._sessions))
        ended = await asyncio.gather(*sessions, return_exceptions=True)
        await self._link.close()
        for spu in self._beside:
            await spu.close()
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def __aenter__(self) -> Self:
        """The connection itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()
