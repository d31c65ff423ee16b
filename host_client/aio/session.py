"""Exclusive use of a device."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from host_client.capacity import Capacity
from host_client.clock import ClockAgreement
from host_client.embeddings import Embedding
from host_client.links.lease import Lease, Upload
from host_client.ownership import Owned
from spu_link.device_time import DeviceTime
from spu_link.errors import DeadlineExceeded, DeviceUnavailable, SpuError
from spu_link.operators import Operator
from spu_link.operators.base import ArrayLike
from spu_link.precision import Precision
from spu_link.program import Applied, Reading, Restored, StartPolicy

if TYPE_CHECKING:
    from host_client.aio.spu import Spu

HEARTBEATS = 4
"""Heartbeats per time to live."""


class Closable(Protocol):
    """Protocol of an object that ends by `close`, also when it has ended already."""

    async def close(self) -> None:
        """End."""


class Session(Owned):
    """Exclusive use of a device, kept alive by a heartbeat. Made by `Spu.session`.

    It lives in one epoch of the device, and refuses a `DeviceTime` of another one.

    Attributes:
        spu: the connection.
        bytes_by_path: bytes of tensors uploaded so far, by path: ``"shared-memory"``, ``"grpc"``, ``"in-process"``.
    """

    def __init__(self, spu: Spu, lease: Lease, ttl: float, holder: str) -> None:
        self.spu = spu
        self.bytes_by_path = lease.bytes_by_path
        self._held = lease
        self._ttl, self._holder = ttl, holder
        self._attached: WeakSet[Closable] = WeakSet()
        self._closing = asyncio.Lock()
        self._closed = self._released = False
        self._heartbeat = asyncio.create_task(self._beat())

    @property
    def lease(self) -> Lease:
        """The link's lease, for as long as the device is held.

        Raises:
            WrongProcess: in a forked child.
            SessionClosed: after `close`.
        """
        self.check_process()
        self._held.check()
        return self._held

    @property
    def clock(self) -> ClockAgreement:
        """Agreement of the host's clock with device time; the heartbeat keeps it fresh."""
        return self._held.clock

    @property
    def device_time(self) -> DeviceTime:
        """Newest device time known from the device's answers, in τ."""
        return self._held.device_time

    @property
    def epoch(self) -> int:
        """Run of the daemon that the session belongs to; device times of two epochs never compare."""
        return self._held.epoch

    @property
    def free_from(self) -> float | None:
        """Device time at which the last program has run its schedule, in τ; None before the first."""
        return self._held.free_from

    @property
    def uploaded_bytes(self) -> int:
        """Bytes of tensors uploaded so far."""
        return self.bytes_by_path.total()

    @property
    def closed(self) -> bool:
        """True if `close` has been called."""
        return self._closed

    @property
    def embedding(self) -> Embedding | None:
        """Embedding of systems in devices with fewer cells than parameters; None for a cell for each parameter."""
        return self._held.link.embedding

    @property
    def capacity(self) -> Capacity:
        """Capacity of the device."""
        return self._held.capacity

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
        """Upload a program; returns when it has taken effect.

        Args:
            operator: F over N parameters; `Kept` for the one that the device holds.
            drive: b, shape (N,).
            damping: λ ≥ 0.
            noise: κ₀ ≥ 0.
            start: ``"keep"``, ``"drive"`` or a tensor of shape (N,); see `Program`.
            precision: how the operator's values travel: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int16"``
                (codes with scales), or None, as they are.
            not_before: earliest device time at which it may take effect, in τ.
            timeout: deadline in seconds of wall time; default the connection's.

        Raises:
            InvalidProgram: when an argument or a value is not what it must be; the old program goes on.
            CapacityExceeded: when the device is too small.
            EpochMismatch: when `not_before` is a time of another run of the daemon.
            OperatorGone: when the device does not hold the operator to be kept any more; the old program goes on.
        """
        upload = self.lease.upload(operator, precision)
        return await upload.program(
            drive, damping=damping, noise=noise, start=start, not_before=not_before, timeout=timeout
        )

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

        The reading is scheduled with the upload, so it is exact however short a τ is compared with a round trip. On a
        stepped clock the time is moved as needed.

        Args:
            operator, drive, damping, noise, start, precision, not_before, timeout: as in `program`.
            analog_time: t ≥ 0, in τ.
            window: average over the last `window` ≤ `analog_time` τ.
        """
        upload = self.lease.upload(operator, precision)
        return await upload.solve(
            drive,
            analog_time=analog_time,
            damping=damping,
            noise=noise,
            start=start,
            window=window,
            not_before=not_before,
            timeout=timeout,
        )

    def upload(self, operator: Operator, *, precision: Precision | None = None) -> Upload:
        """Begin to upload a program whose operator is known before the rest; the bytes go while the caller goes on.

        The operator's tensors must stay as they are until the upload is over:

            async with session.upload(operator) as upload:
                ...
                reading = await upload.solve(drive, analog_time=50.0, damping=0.01)

        Args:
            operator: F over N parameters.
            precision: how its values travel, as in `program`.

        Returns:
            The upload. It lives as long as the session, and is abandoned where the block ends without `Upload.solve` or
            `Upload.program`. These raise its errors.
        """
        upload = self.lease.upload(operator, precision)
        upload.begin()
        return upload

    async def advance(self, duration: float, *, timeout: float | None = None) -> float:
        """Move a stepped clock by `duration` τ; the new device time.

        Raises:
            ClockMismatch: on a free-running clock.
        """
        return await self.lease.advance(duration, timeout=self._timeout(timeout))

    async def read(self, at: float | None = None, window: float = 0.0, *, timeout: float | None = None) -> Reading:
        """Measure the state.

        Args:
            at: device time to wait for, in τ, such as ``session.clock.device_time() + 1e4``; None for now.
            window: average over the last `window` τ; 0 for the state itself.
            timeout: deadline in seconds of wall time; default the connection's on top of the wait.

        Raises:
            ReadInPast: when the state asked for is gone.
            NoProgram: when nothing has taken effect.
            EpochMismatch: when `at` is a time of another run of the daemon.
        """
        lease = self.lease
        lease.check_epoch("at", at)
        if timeout is None:
            timeout = lease.link.timeout + lease.seconds_until(at)
        return await lease.read(at, window, timeout=timeout)

    def attach(self, thing: Closable) -> None:
        """Close something with the session, before the device is released, if it still exists then."""
        self._attached.add(thing)

    async def reopen(self) -> None:
        """Take the device again, after this session has ended: a new session, and perhaps a new epoch.

        Raises:
            DeviceUnavailable: when no daemon answers.
            DeviceBusy: while another session lives.
            ClockMismatch: when the device's clock is of another kind now.
        """
        self._heartbeat.cancel()
        await self.spu.renew()
        timeout = self.spu.timeout
        await self.lease.release(timeout=timeout)
        lease = await self._held.link.take(self._holder, self._ttl, self.bytes_by_path, timeout=timeout)
        if self._closed:  # meanwhile
            await lease.release(timeout=timeout)
        self.lease  # noqa: B018 - raises if so
        self._held = lease
        self._heartbeat = asyncio.create_task(self._beat())

    async def save_state(self, *, timeout: float | None = None) -> bytes:
        """The device's whole state, for `restore_state`: program and operator, cells, and the random numbers to come.

        Nothing moves: whoever saves sees the same bits afterwards as who does not. Uploads and readings under way are
        not part of it, so save between them.

        Raises:
            Unsupported: when the device has no feature ``"state"``.
        """
        return await self.lease.save_state(timeout=self._timeout(timeout))

    async def restore_state(self, state: bytes, *, timeout: float | None = None) -> Restored:
        """Restore a saved state: from there on everything is, bit for bit, as if it had not been interrupted.

        A stepped clock that has not come to the time of saving moves there, and the shift is exactly 0; on any other
        clock the state's times shift to now. Readings still to come are then taken of the restored state.

        Args:
            state: what `save_state` of such a device gave.
            timeout: deadline in seconds of wall time; default the connection's.

        Raises:
            InvalidProgram: when it is no such state; the device stays as it is.
            CapacityExceeded: when the device is too small for it.
            Unsupported: when the device has no feature ``"state"``.
        """
        return await self.lease.restore_state(state, timeout=self._timeout(timeout))

    async def close(self) -> None:
        """Release the device, also while calls are under way; a daemon that is gone has done so already."""
        self.check_process()
        async with self._closing:
            if self._released:
                return
            self._closed = True
            self._held.mark_closed()
            for thing in list(self._attached):
                await thing.close()
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
            with suppress(DeviceUnavailable):
                await self._held.release(timeout=self.spu.timeout)
            self._released = True

    def _timeout(self, timeout: float | None) -> float:
        return self.spu.timeout if timeout is None else timeout

    async def _beat(self) -> None:
        """Renew the lease until it ends. The next call raises the device's own error for that end."""
        lease, interval = self._held, self._ttl / HEARTBEATS
        while True:
            await asyncio.sleep(interval)
            try:
                await lease.renew(timeout=max(interval, 1.0))
                lease.clock.add(await lease.link.time(timeout=max(interval, 1.0)))
            except (DeviceUnavailable, DeadlineExceeded):
                continue  # the daemon may come back before the time to live is over
            except SpuError:
                return
