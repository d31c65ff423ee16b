"""A device in this process: the daemon's own `Device` without a daemon, for notebooks, tests and comparisons."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from host_client.clock import Exchange
from host_client.links.base import Info, Link, ReadPlan, Upload, plans, until
from spu_link import wire
from spu_link.aligned import aligned, fill
from spu_link.errors import DeviceUnavailable
from spu_link.operators import Operator
from spu_link.precision import Precision
from spu_link.program import Applied, Program, Reading, Restored
from spu_server.clock import FreeClock, SteppedClock
from spu_server.device import Device
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.local import LocalDriver
from spu_server.drivers.recording import RecordingPort
from spu_server.event_log import Header, LogWriter
from spu_server.services.spu import describe
from tngd.spu.v1 import spu_pb2 as pb

T = TypeVar("T")


class InprocLink(Link):
    """A device of this process. Make it with `open` on the loop that will use it.

    Uploads take the same way as over a wire, checks and copy included, so that what works here works there.
    """

    address = "inproc:"

    def __init__(
        self, device: Device[memoryview], port: LocalDriver, recording: RecordingPort[memoryview] | None = None
    ) -> None:
        self._open: Device[memoryview] | None = device
        self._port = port
        self._recording = recording

    @property
    def device(self) -> Device[memoryview]:
        """The device behind it.

        Raises:
            DeviceUnavailable: after `close`.
        """
        if self._open is None:
            raise DeviceUnavailable(f"the connection to {self.address} is closed", field="address", found=self.address)
        return self._open

    @classmethod
    async def open(
        cls,
        *,
        driver: str = "emulator",
        clock: Literal["free", "stepped"] = "free",
        rate: float | None = None,
        tau: float = DriverOptions.tau,
        seed: int = DriverOptions.seed,
        cells: int = DriverOptions.cells,
        max_bytes: int = DriverOptions.max_bytes,
        compute: str = DriverOptions.compute,
        driver_option: Mapping[str, str] | None = None,
        calibrate: bool = False,
        record: str | Path | None = None,
    ) -> InprocLink:
        """Open a driver and put a device before it. The options are those of ``spu-server serve``.

        Raises:
            DeviceFault: when the driver cannot be opened, or its device finds that something is wrong with it.
            LogUnusable: when a log is asked for and cannot be written.
        """
        settings = driver_option or {}
        options = DriverOptions(seed, tau, cells, max_bytes, compute, clock=clock, rate=rate, settings=settings)
        port = LocalDriver(driver, options)
        capabilities = await port.start()
        tau = capabilities.tau or tau
        moving = SteppedClock() if clock == "stepped" else FreeClock(rate or 1.0 / tau)
        epoch = time.time_ns()
        recording: RecordingPort[memoryview] | None = None
        device: Device[memoryview] | None = None
        try:
            if record is not None:
                writer = LogWriter(Path(record), Header.of(driver, options, capabilities, moving, epoch))
                recording = RecordingPort(port, writer, moving)
            device = Device(recording or port, capabilities, moving, tau, epoch)
            await device.examine(calibrate=calibrate)
        except BaseException:  # an interrupt of the caller among them
            if device is not None:
                await device.close()
            await port.close()
            if recording is not None:
                await recording.close()
            raise
        return cls(device, port, recording)

    async def info(self, *, timeout: float) -> Info:
        """What the device is and how it stands."""
        return Info.from_message(describe(self.device))

    async def time(self, *, timeout: float) -> Exchange:
        """Ask for the device's time."""
        device = self.device
        sent = time.monotonic()
        now = device.clock.now()
        return Exchange(sent, time.monotonic(), now, now, device.epoch, device.clock.rate)

    async def report(self, *, timeout: float) -> dict[str, float]:
        """What has happened on the device, in named numbers."""
        return await _within(timeout, "report", self.device.report())

    async def open_session(self, holder: str, ttl: float, *, timeout: float) -> pb.SessionRef:
        """Take the device."""
        return self.device.open_session(holder, ttl)

    async def renew(self, session: pb.SessionRef, *, timeout: float) -> None:
        """Heartbeat."""
        self.device.sessions.check(session)

    async def close_session(self, session: pb.SessionRef, *, timeout: float) -> None:
        """Give the device back."""
        self.device.close_session(session)

    def upload(self, session: pb.SessionRef, operator: Operator, precision: Precision | None) -> Upload:
        """A program on its way to the device."""
        return _InprocUpload(self, session, operator, precision)

    async def advance(self, session: pb.SessionRef, duration: float, *, timeout: float) -> float:
        """Move a stepped clock; the new device time."""
        return await _within(timeout, "advance", self.device.advance(session, duration))

    async def read(self, session: pb.SessionRef, at: float | None, window: float, *, timeout: float) -> Reading:
        """Take one reading."""
        return await _within(timeout, "read", self.device.read(session, at, window))

    async def save_state(self, session: pb.SessionRef, *, timeout: float) -> bytes:
        """The device's whole state."""
        return bytes(await _within(timeout, "save_state", self.device.save(session)))

    async def restore_state(self, session: pb.SessionRef, state: bytes, *, timeout: float) -> Restored:
        """Let a saved state take hold."""
        self.device.check_restore(session, len(state))
        return await _within(timeout, "restore_state", self.device.restore(session, memoryview(state)))

    async def halt(self, reason: str, *, timeout: float) -> float:
        """Stop the device; the device time of the halt."""
        return await _within(timeout, "halt", self.device.halt(reason))

    async def close(self) -> None:
        """Stop the device and close the driver."""
        if self._open is not None:
            device, self._open = self._open, None
            await device.close()
            await self._port.close()
            if self._recording is not None:
                await self._recording.close()


class _InprocUpload(Upload):
    path = "in-process"

    def __init__(
        self, link: InprocLink, session: pb.SessionRef, operator: Operator, precision: Precision | None
    ) -> None:
        self._link = link
        self._session = session
        self._operator = operator
        self._precision = precision
        self._header: pb.ProgramHeader | None = None
        self._payload: memoryview | None = None

    async def begin(self) -> None:
        """Check and copy the operator, beside the event loop, which has the interpreter's other threads to wait for."""
        header, tensors = wire.operator_header(self._operator, self._precision)
        self._link.device.admit(self._session, header)
        views = wire.byte_views(tensors)
        payload = aligned(sum(map(len, views)) + 2 * wire.WIDEST * self._operator.parameters)  # with drive and start
        self.sent_bytes = await asyncio.to_thread(fill, payload, views)
        self._payload = payload
        self._header = header

    async def finish(
        self, program: Program, reads: Sequence[ReadPlan], not_before: float | None, *, timeout: float
    ) -> AsyncGenerator[Applied | Reading, None]:
        """Copy the rest and program the device."""
        deadline = asyncio.get_running_loop().time() + timeout
        device = self._link.device
        if self._header is None:
            header, tensors = wire.header_of(program)
        else:
            header, (late, tensors) = self._header, wire.late_header(program)
            header.MergeFrom(late)
        header.MergeFrom(plans(reads, not_before))
        device.admit(self._session, header)
        views = wire.byte_views(tensors)
        payload, self._payload = self._payload, None
        if payload is None:
            payload = aligned(sum(map(len, views)))
        self.sent_bytes += fill(payload[self.sent_bytes :], views)
        payload = payload[: self.sent_bytes]
        programmed = await until(deadline, "program", device.program(self._session, header, payload))
        try:
            yield programmed.applied
            for reading in programmed.readings:
                yield await until(deadline, "program", reading)
        finally:
            for reading in programmed.readings:
                reading.cancel()

    async def abandon(self) -> None:
        """Forget the copy."""
        self._payload = None


async def _within(timeout: float, call: str, awaitable: Awaitable[T]) -> T:
    return await until(asyncio.get_running_loop().time() + timeout, call, awaitable)
