"""Exclusive use of a device."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

from host_client.aio.upload import Upload
from host_client.clock import ClockAgreement
from host_client.forked import Owned
from host_client.links.base import Capacity, Link
from spu_link.device_time import DeviceTime
from spu_link.errors import DeadlineExceeded, DeviceUnavailable, SessionClosed, SpuError
from spu_link.operators import Kept, Operator
from spu_link.operators.base import ArrayLike
from spu_link.precision import Precision
from spu_link.program import Applied, Reading, Restored, StartPolicy
from tngd.spu.v1 import spu_pb2 as pb

if TYPE_CHECKING:
    from host_client.aio.spu import Spu
    from host_client.embeddings import Embedding
    from host_client.loop.feed import Feed
    from host_client.loop.policies import OnLoss
    from host_client.record.events import Event

HEARTBEATS = 4
"""Heartbeats per time to live."""

LONGEST_WAIT = 1e8
"""Longest wait that a call is given for device time to come, in seconds: three years."""


class Session(Owned):
    """Exclusive use of a device, kept alive by a heartbeat. Made by `Spu.session`.

    It lives in one epoch of the device, and refuses a `DeviceTime` of another one.

    Attributes:
        spu: the connection.
        clock: agreement of the host's clock with device time; the heartbeat keeps it fresh.
        bytes_by_path: bytes of tensors uploaded so far, by path: ``"shared-memory"``, ``"grpc"``, ``"in-process"``.
        device_time: newest device time known from the device's answers, in τ.
    """

    def __init__(
        self, spu: Spu, link: Link, ref: pb.SessionRef, ttl: float, holder: str, clock: ClockAgreement
    ) -> None:
        self.spu = spu
        self.clock = clock
        self.bytes_by_path: Counter[str] = Counter()
        self.device_time = DeviceTime(0.0, ref.epoch)
        self._way = link
        self._ref = ref
        self._ttl, self._holder = ttl, holder
        self._feeds: WeakSet[Feed] = WeakSet()
        self._closing = asyncio.Lock()
        self._closed = self._given_back = False
        self._heartbeat = asyncio.create_task(self._beat(ttl / HEARTBEATS))

    @property
    def uploaded_bytes(self) -> int:
        """Bytes of tensors uploaded so far."""
        return self.bytes_by_path.total()

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    @property
    def _link(self) -> Link:
        """The way to the device.

        Raises:
            WrongProcess: in a forked child.
            SessionClosed: after `close`.
        """
        self.check_process()
        if self._closed and not self.spu.closed:  # of a closed connection the link tells
            raise SessionClosed(
                f"this session on {self.spu.address} was closed in this process; open a new one with spu.session()",
                field="session",
                found=self._ref.fencing,
                expected="a session that is open",
            )
        return self._way

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
            operator: F over N parameters; `Kept` for the one that the device holds.
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
            EpochMismatch: when `not_before` is a time of another run of the daemon.
            OperatorGone: when the device does not hold the operator to be kept any more; the old program goes on.
        """
        upload = self._upload(operator, precision)
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

        The reading is scheduled with the upload, so it is exact however short a τ is beside a round trip. On a stepped
        clock the time is moved as needed.

        Args:
            operator, drive, damping, noise, start, precision, not_before, timeout: as in `program`.
            analog_time: t ≥ 0, in τ.
            window: average over the last `window` ≤ `analog_time` τ.
        """
        upload = self._upload(operator, precision)
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
            `Upload.program`. Its errors are told by these.
        """
        upload = self._upload(operator, precision)
        upload.begin()
        return upload

    @property
    def embedding(self) -> Embedding | None:
        """How systems are cut for devices with fewer cells than parameters; None for a cell for each parameter."""
        return None

    @property
    def capacity(self) -> Capacity:
        """What can be held."""
        return self.spu.capacity

    @property
    def keeps(self) -> bool:
        """Whether an operator that has been sent may be named by `Kept` for the next drives."""
        return Kept.kind in self.spu.features

    @property
    def copies_at_once(self) -> bool:
        """Whether an operator that goes ahead is copied at once: its tensors are free when `Upload.begun` returns."""
        return self._link.copies_at_once(self._ref)

    async def advance(self, duration: float, *, timeout: float | None = None) -> float:
        """Move a stepped clock by `duration` τ; the new device time.

        Raises:
            ClockMismatch: on a free-running clock.
        """
        return await self._move(duration, timeout)

    async def read(self, at: float | None = None, window: float = 0.0, *, timeout: float | None = None) -> Reading:
        """Measure the state.

        Args:
            at: device time to wait for, in τ, such as ``session.clock.device_time() + 1e4``; None for now.
            window: average over the last `window` τ; 0 for the state itself.
            timeout: deadline in seconds of wall time; default the connection's on top of the wait.

        Raises:
            ReadInPast: when the state asked for is gone.
            NoProgram: when nothing has taken hold.
            EpochMismatch: when `at` is a time of another run of the daemon.
        """
        self._check_epoch("at", at)
        if timeout is None:
            timeout = self.spu.timeout + self._seconds_until(at)
        reading = await self._link.read(self._ref, at, window, timeout=timeout)
        self._learn(reading.time)
        return reading

    def feed(
        self,
        *,
        on_loss: OnLoss = "raise",
        record: Callable[[Event], None] | None = None,
        counts: Counter[str] | None = None,
    ) -> Feed:
        """Feed the device in the background: uploads one after the other, readings as they come.

        Args:
            on_loss: unless ``"raise"``, the session is opened again when the device is lost.
            record: told what happens.
            counts: where it counts what happened how often.

        Returns:
            The feed. It lives as long as the session.
        """
        from host_client.loop.feed import Feed

        feed = Feed(self, on_loss=on_loss, record=record, counts=counts)
        self._feeds.add(feed)
        return feed

    async def reopen(self) -> None:
        """Take the device again, after this session has ended: a new session, and perhaps a new epoch.

        Raises:
            DeviceUnavailable: when no daemon answers.
            DeviceBusy: while another session lives.
            ClockMismatch: when the device's clock is of another kind now.
        """
        self._heartbeat.cancel()
        await self.spu.renew()
        await self._link.close_session(self._ref, timeout=self.spu.timeout)  # no error where it has ended
        self._ref = await self._link.open_session(self._holder, self._ttl, timeout=self.spu.timeout)
        self.clock = await self.spu._agree(asyncio.get_running_loop().time() + self.spu.timeout)
        self.device_time = DeviceTime(0.0, self.epoch)
        self._heartbeat = asyncio.create_task(self._beat(self._ttl / HEARTBEATS))

    @property
    def epoch(self) -> int:
        """Run of the daemon that the session belongs to; device times of two epochs never compare."""
        return self._ref.epoch

    async def save_state(self, *, timeout: float | None = None) -> bytes:
        """The device's whole state, for `restore_state`: program and operator, cells, and the random numbers to come.

        Nothing moves: whoever saves sees the same bits afterwards as who does not. Uploads and readings under way are
        not part of it, so save between them.

        Raises:
            Unsupported: when the device has no feature ``"state"``.
        """
        return await self._link.save_state(self._ref, timeout=self._timeout(timeout))

    async def restore_state(self, state: bytes, *, timeout: float | None = None) -> Restored:
        """Let a saved state take hold: from there on everything is, bit for bit, as if it had not been interrupted.

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
        restored = await self._link.restore_state(self._ref, state, timeout=self._timeout(timeout))
        self._learn(restored.time)
        return restored

    async def close(self) -> None:
        """Give the device back, also while calls are under way; a daemon that is gone has done so already."""
        self.check_process()
        async with self._closing:
            if self._given_back:
                return
            self._closed = True
            for feed in list(self._feeds):
                await feed.close()
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
            with suppress(DeviceUnavailable):
                await self._way.close_session(self._ref, timeout=self.spu.timeout)
            self._given_back = True

    def _upload(self, operator: Operator, precision: Precision | None) -> Upload:
        """A program on its way; nothing is sent yet."""
        return Upload(self, operator, precision)

    async def _move(self, duration: float, timeout: float | None = None) -> float:
        """Move the stepped clock of this device alone."""
        time = await self._link.advance(self._ref, duration, timeout=self._timeout(timeout))
        return self._learn(time)

    def _timeout(self, timeout: float | None) -> float:
        return self.spu.timeout if timeout is None else timeout

    def _seconds_until(self, at: float | None) -> float:
        """Wall time that the device's own evolution may take at most until device time `at`."""
        if at is None or self.spu.rate == 0 or not math.isfinite(at):
            return 0.0  # the device refuses a time that is not finite
        return min(max(0.0, at - self.device_time) / self.spu.rate, LONGEST_WAIT)

    def _learn(self, time: float) -> DeviceTime:
        """The device has told a time; of a call from before `reopen` it may be one of another epoch."""
        told = time if isinstance(time, DeviceTime) else DeviceTime(time, self.epoch)
        if told.epoch == self.epoch:
            self.device_time = max(self.device_time, told)
            self.clock.tell(told)
        return told

    def _check_epoch(self, field: str, at: float | None) -> None:
        if isinstance(at, DeviceTime):
            at.check(self._ref.epoch, field)

    async def _beat(self, interval: float) -> None:
        """Renew the session until it ends. What ended it is told to whoever calls next, by the device itself."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self._link.renew(self._ref, timeout=max(interval, 1.0))
                self.clock.add(await self._link.time(timeout=max(interval, 1.0)))
            except (DeviceUnavailable, DeadlineExceeded):
                continue  # the daemon may come back before the time to live is over
            except SpuError:
                return
