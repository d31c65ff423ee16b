"""The asynchronous API: connect to a device, hold a session, program, advance, read.

    async with await connect("unix:/tmp/spu.sock") as spu, spu.session() as session:
        reading = await session.solve(Rows(a), gradient, analog_time=50.0, damping=0.01)

`host_client.connect` is the same for code without an event loop.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Self

from host_client.links.base import Info, Link, ReadPlan
from spu_link.errors import DeadlineExceeded, DeviceUnavailable, SpuError
from spu_link.operators import Operator
from spu_link.operators.base import ArrayLike, mismatch
from spu_link.precision import Precision
from spu_link.program import Applied, Program, Reading, StartPolicy
from tngd.spu.v1 import spu_pb2 as pb

HEARTBEATS = 4
"""Heartbeats per time to live."""

LONGEST_WAIT = 1e8
"""Longest wait that a call is given for device time to come, in seconds: three years."""


async def connect(address: str, *, timeout: float = 60.0, **device: Any) -> Spu:
    """Connect to a device.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT`` of a daemon, or ``inproc:`` for an emulator in this process.
        timeout: deadline of every call, in seconds of wall time, on top of the device time that a call waits for.
        device: options of an ``inproc:`` device, as in `InprocLink.open`: ``clock``, ``rate``, ``tau``, ``seed`` …

    Raises:
        DeviceUnavailable: when no daemon answers there.
        InvalidProgram: when the address is of no known form.
    """
    if address == "inproc:":
        from host_client.links.inproc import InprocLink

        link: Link = await InprocLink.open(**device)
    elif address.startswith("unix:") or address.rpartition(":")[2].isdigit():
        if device:
            raise TypeError(f"{', '.join(device)}: options of an inproc: device; a daemon has its own")
        from host_client.links.remote import RemoteLink

        link = RemoteLink(address)
    else:
        raise mismatch("address", repr(address), "unix:PATH, HOST:PORT or inproc:")
    try:
        return Spu(link, await link.info(timeout=timeout), timeout)
    except BaseException:
        await link.close()
        raise


class Spu:
    """A connection to one device. Made by `connect`.

    Attributes:
        address: where it leads.
        timeout: deadline of every call, in seconds of wall time.
    """

    def __init__(self, link: Link, info: Info, timeout: float) -> None:
        self.address = link.address
        self.timeout = timeout
        self._link = link
        self._at_connect = info

    @property
    def clock(self) -> str:
        """Kind of the device's clock: ``"free"`` or ``"stepped"``."""
        return self._at_connect.clock

    @property
    def rate(self) -> float:
        """τ per second of wall time; 0 on a stepped clock."""
        return self._at_connect.rate

    async def info(self) -> Info:
        """What the device is and how it stands now."""
        return await self._link.info(timeout=self.timeout)

    async def halt(self, reason: str = "") -> float:
        """Stop the device at once, whoever holds it; the device time of the halt."""
        return await self._link.halt(reason, timeout=self.timeout)

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
        ref = await self._link.open_session(holder, ttl, timeout=self.timeout)
        return Session(self, self._link, ref, ttl)

    async def close(self) -> None:
        """Let go of the connection; sessions still open end with their time to live."""
        await self._link.close()

    async def __aenter__(self) -> Self:
        """The connection itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()


class Session:
    """Exclusive use of a device, kept alive by a heartbeat. Made by `Spu.session`.

    Attributes:
        spu: the connection.
        uploaded_bytes: bytes of tensors uploaded so far.
        device_time: newest device time known from the device's answers, in τ.
    """

    def __init__(self, spu: Spu, link: Link, ref: pb.SessionRef, ttl: float) -> None:
        self.spu = spu
        self.uploaded_bytes = 0
        self.device_time = 0.0
        self._link = link
        self._ref = ref
        self._heartbeat = asyncio.create_task(self._beat(ttl / HEARTBEATS))

    async def program(
        self,
        operator: Operator,
        drive: ArrayLike,
        *,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        precision: Precision | None = None,
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """Upload a program; returns when it has taken hold.

        Args:
            operator: F over N parameters.
            drive: b, shape (N,).
            damping: λ ≥ 0.
            noise: κ₀ ≥ 0.
            start: ``"keep"``, ``"drive"`` or a tensor of shape (N,); see `Program`.
            precision: how the operator's values travel: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int16"``
                (codes with scales), or None, as they are.
            not_before: earliest device time at which it may take hold, in τ.
            timeout: deadline in seconds of wall time; default the connection's.

        Raises:
            InvalidProgram: when an argument or a value is not what it must be; the old program goes on.
            CapacityExceeded: when the device is too small.
        """
        program = Program(operator, drive, damping=damping, noise=noise, start=start, precision=precision)
        async with aclosing(self._upload(program, [], not_before, timeout)) as events:
            applied = await anext(events)
        assert isinstance(applied, Applied)
        return applied

    async def solve(
        self,
        operator: Operator,
        drive: ArrayLike,
        *,
        analog_time: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        precision: Precision | None = None,
        window: float = 0.0,
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Reading:
        """Program the device, let it evolve for `analog_time` τ, and read it: an estimate of (F + λI)⁻¹ b.

        The reading is scheduled with the upload, so it is exact however short a τ is beside a round trip. On a stepped
        clock the time is moved as needed.

        Args:
            operator, drive, damping, noise, start, precision, not_before, timeout: as in `program`.
            analog_time: t ≥ 0, in τ.
            window: average over the last `window` ≤ `analog_time` τ.
        """
        program = Program(operator, drive, damping=damping, noise=noise, start=start, precision=precision)
        stepped = self.spu.clock == "stepped"
        if stepped and not_before is not None and not_before > self.device_time:
            await self.advance(not_before - self.device_time)
        async with aclosing(self._upload(program, [ReadPlan(analog_time, window)], not_before, timeout)) as events:
            await anext(events)
            if stepped:
                await self.advance(analog_time)
            reading = await anext(events)
        assert isinstance(reading, Reading)
        return reading

    async def advance(self, duration: float, *, timeout: float | None = None) -> float:
        """Move a stepped clock by `duration` τ; the new device time.

        Raises:
            ClockMismatch: on a free-running clock.
        """
        time = await self._link.advance(self._ref, duration, timeout=timeout or self.spu.timeout)
        self.device_time = max(self.device_time, time)
        return time

    async def read(self, at: float | None = None, window: float = 0.0, *, timeout: float | None = None) -> Reading:
        """Measure the state.

        Args:
            at: device time to wait for, in τ; None for now.
            window: average over the last `window` τ; 0 for the state itself.
            timeout: deadline in seconds of wall time; default the connection's on top of the wait.

        Raises:
            ReadInPast: when the state asked for is gone.
            NoProgram: when nothing has taken hold.
        """
        if timeout is None:
            timeout = self.spu.timeout + self._seconds_until(at)
        reading = await self._link.read(self._ref, at, window, timeout=timeout)
        self.device_time = max(self.device_time, reading.time)
        return reading

    async def close(self) -> None:
        """Give the device back; a daemon that is gone has done so already."""
        self._heartbeat.cancel()
        await asyncio.gather(self._heartbeat, return_exceptions=True)
        with suppress(DeviceUnavailable):
            await self._link.close_session(self._ref, timeout=self.spu.timeout)

    async def _upload(
        self, program: Program, reads: Sequence[ReadPlan], not_before: float | None, timeout: float | None
    ) -> AsyncGenerator[Applied | Reading, None]:
        if timeout is None:
            last = max((read.after for read in reads), default=0.0)
            timeout = self.spu.timeout + self._seconds_until((not_before or self.device_time) + last)
        async with aclosing(self._link.program(self._ref, program, reads, not_before, timeout=timeout)) as events:
            async for event in events:
                if isinstance(event, Applied):
                    self.uploaded_bytes += program.nbytes
                self.device_time = max(self.device_time, event.time)
                yield event

    def _seconds_until(self, at: float | None) -> float:
        """Wall time that the device's own evolution may take at most until device time `at`."""
        if at is None or self.spu.rate == 0 or not math.isfinite(at):
            return 0.0  # the device refuses a time that is not finite
        return min(max(0.0, at - self.device_time) / self.spu.rate, LONGEST_WAIT)

    async def _beat(self, interval: float) -> None:
        """Renew the session until it ends. What ended it is told to whoever calls next, by the device itself."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self._link.renew(self._ref, timeout=max(interval, 1.0))
            except (DeviceUnavailable, DeadlineExceeded):
                continue  # the daemon may come back before the time to live is over
            except SpuError:
                return
