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
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from host_client.clock import ClockAgreement
from host_client.links.base import Capacity, Info, Link, Path, ReadPlan, until
from spu_link.device_time import DeviceTime
from spu_link.errors import ClockMismatch, DeadlineExceeded, DeviceUnavailable, ProtocolError, SpuError
from spu_link.operators import Damped, Operator
from spu_link.operators.base import ArrayLike, mismatch
from spu_link.precision import Precision
from spu_link.program import Applied, Program, Reading, Restored, StartPolicy
from tngd.spu.v1 import spu_pb2 as pb

if TYPE_CHECKING:
    from host_client.loop.feed import Feed
    from host_client.loop.policies import OnLoss
    from host_client.record.events import Event

HEARTBEATS = 4
"""Heartbeats per time to live."""

EXCHANGES = 4
"""Questions after the device's time when a session opens; each heartbeat asks once more."""

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

        Of the driver ``analog``: values clipped by converters and rails, modelled seconds and joules.
        """
        return await self._link.report(timeout=self.timeout)

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
        try:
            clock = await self._agree()
        except BaseException:
            with suppress(SpuError):
                await self._link.close_session(ref, timeout=self.timeout)
            raise
        return Session(self, self._link, ref, ttl, holder, clock)

    async def _agree(self) -> ClockAgreement:
        clock = ClockAgreement(await self._link.time(timeout=self.timeout))
        for _ in range(EXCHANGES - 1):
            clock.add(await self._link.time(timeout=self.timeout))
        return clock

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
        self._link = link
        self._ref = ref
        self._ttl, self._holder = ttl, holder
        self._feeds: WeakSet[Feed] = WeakSet()
        self._heartbeat = asyncio.create_task(self._beat(ttl / HEARTBEATS))

    @property
    def uploaded_bytes(self) -> int:
        """Bytes of tensors uploaded so far."""
        return self.bytes_by_path.total()

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
        upload = Upload(self, operator, precision)
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
        upload = Upload(self, operator, precision)
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
        upload = Upload(self, operator, precision)
        upload.begin()
        return upload

    async def advance(self, duration: float, *, timeout: float | None = None) -> float:
        """Move a stepped clock by `duration` τ; the new device time.

        Raises:
            ClockMismatch: on a free-running clock.
        """
        time = await self._link.advance(self._ref, duration, timeout=timeout or self.spu.timeout)
        return self._learn(time)

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
        self.clock = await self.spu._agree()
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
        return await self._link.save_state(self._ref, timeout=timeout or self.spu.timeout)

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
        restored = await self._link.restore_state(self._ref, state, timeout=timeout or self.spu.timeout)
        self._learn(restored.time)
        return restored

    async def close(self) -> None:
        """Give the device back; a daemon that is gone has done so already."""
        for feed in self._feeds:
            await feed.close()
        self._heartbeat.cancel()
        await asyncio.gather(self._heartbeat, return_exceptions=True)
        with suppress(DeviceUnavailable):
            await self._link.close_session(self._ref, timeout=self.spu.timeout)

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


class Upload:
    """A program on its way to the device: the operator first, then the rest. Made by `Session.upload`.

    One call of `program`, `solve` or `abandon` ends it.

    Attributes:
        operator: F.
    """

    def __init__(self, session: Session, operator: Operator, precision: Precision | None) -> None:
        self.operator = operator
        self._precision = precision
        self._session = session
        # A damped operator travels as what it damps.
        inner = operator.operator if isinstance(operator, Damped) else operator
        self._upload = session._link.upload(session._ref, inner, precision) if isinstance(inner, Operator) else None
        self._beginning: asyncio.Task[None] | None = None
        self._over = False

    @property
    def sent_bytes(self) -> int:
        """Bytes of tensors that have left so far."""
        return self._upload.sent_bytes if self._upload else 0

    @property
    def path(self) -> Path | None:
        """How its bytes go; None before the first of them."""
        return self._upload.path if self._upload and self._upload.sent_bytes else None

    def begin(self) -> None:
        """Send the operator ahead, if anything of it travels."""
        if self._upload is not None and self.operator.nbytes:
            self._beginning = asyncio.create_task(self._upload.begin())

    async def program(
        self,
        drive: ArrayLike,
        *,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """Send the rest; returns when the program has taken hold. Arguments and errors as of `Session.program`."""
        program = await self._program(drive, damping, noise, start, not_before)
        async with aclosing(self._finish(program, [], not_before, timeout)) as events:
            applied = await anext(events)
        assert isinstance(applied, Applied)
        return applied

    async def solve(
        self,
        drive: ArrayLike,
        *,
        analog_time: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        window: float = 0.0,
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Reading:
        """Send the rest, let the device evolve, and read it. Arguments and errors as of `Session.solve`."""
        events = self.stream(
            drive,
            [ReadPlan(analog_time, window)],
            length=analog_time,
            damping=damping,
            noise=noise,
            start=start,
            not_before=not_before,
            timeout=timeout,
        )
        async with aclosing(events):
            await anext(events)
            reading = await anext(events)
        assert isinstance(reading, Reading)
        return reading

    async def stream(
        self,
        drive: ArrayLike,
        reads: Sequence[ReadPlan],
        *,
        length: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Applied | Reading, None]:
        """Send the rest, and give what comes back as it comes: when the program took hold, then each reading.

        Args:
            drive, damping, noise, start, not_before, timeout: as of `Session.program`.
            reads: the readings to take, in the order of their times.
            length: by how much a stepped clock is moved under the program, in τ: at least to the last reading.
        """
        session = self._session
        program = await self._program(drive, damping, noise, start, not_before)
        stepped = session.spu.clock == "stepped"
        # More than once where a sum has been rounded down: each time goes on by at least the last digit.
        while stepped and not_before is not None and not_before > session.device_time:
            await session.advance(not_before - session.device_time)
        async with aclosing(self._finish(program, reads, not_before, timeout)) as events:
            yield await anext(events)
            if stepped:
                await session.advance(length)
            async for event in events:
                yield event

    async def abandon(self) -> None:
        """Break off, unless it is over. Nothing is left behind, and the old program goes on."""
        if self._over:
            return
        self._over = True
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        if self._upload is not None:
            await self._upload.abandon()

    async def __aenter__(self) -> Self:
        """The upload itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Abandon what has not been finished."""
        await self.abandon()

    async def _program(
        self, drive: ArrayLike, damping: float, noise: float, start: StartPolicy | ArrayLike, not_before: float | None
    ) -> Program:
        try:
            self._session._check_epoch("not_before", not_before)
            return Program(self.operator, drive, damping=damping, noise=noise, start=start, precision=self._precision)
        except SpuError:
            await self.abandon()
            raise

    async def _finish(
        self, program: Program, reads: Sequence[ReadPlan], not_before: float | None, timeout: float | None
    ) -> AsyncGenerator[Applied | Reading, None]:
        session = self._session
        if self._over:
            raise ProtocolError("this upload is over; begin another one", field="upload", found="over")
        if timeout is None:
            last = max((read.after for read in reads), default=0.0)
            timeout = session.spu.timeout + session._seconds_until((not_before or session.device_time) + last)
        upload = self._upload
        assert upload is not None  # else there is no program
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            if self._beginning is not None:
                await until(deadline, "program", self._beginning)
            left = deadline - asyncio.get_running_loop().time()
            async with aclosing(upload.finish(program, reads, not_before, timeout=left)) as events:
                self._over = True
                async for event in events:
                    if isinstance(event, Applied):
                        session.bytes_by_path[upload.path] += upload.sent_bytes
                    session._learn(event.time)
                    yield event
        finally:
            await self.abandon()
