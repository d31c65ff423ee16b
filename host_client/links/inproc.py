"""A device in this process: the daemon's own `Device` without a daemon, for notebooks, tests and comparisons."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from pydantic import ValidationError

from host_client.capacity import Info
from host_client.clock import Exchange
from host_client.links.base import Link, info_from, until
from host_client.links.lease import Lease, SingleUpload
from spu_link import wire
from spu_link.aligned import aligned, fill
from spu_link.errors import DeviceUnavailable, InvalidProgram
from spu_link.program import Applied, Program, Reading, Restored
from spu_server.clock import FreeClock, SteppedClock
from spu_server.device import Device
from spu_server.device_settings import DeviceSettings, problem_of
from spu_server.drivers.event_log import Header, LogWriter
from spu_server.drivers.port import LocalDriver
from spu_server.drivers.recording import RecordingPort
from spu_server.services.spu import describe
from spu_server.sessions import SessionKey
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
    async def open(cls, /, **device: Any) -> InprocLink:
        """Open a driver and put a device before it.

        Args:
            device: options of ``spu-server serve`` that concern the device, see `DeviceSettings`.

        Raises:
            DeviceFault: when the driver cannot be opened, or its device finds that something is wrong with it.
            InvalidProgram: when there is no such option, or its value is not what it must be.
            LogUnusable: when a log is asked for and cannot be written.
        """
        settings = _settings(device)
        options = settings.driver_options
        port = LocalDriver(settings.driver, options)
        capabilities = await port.start()
        tau = capabilities.tau or settings.tau
        moving = SteppedClock() if settings.clock == "stepped" else FreeClock(settings.rate or 1.0 / tau)
        epoch = time.time_ns()
        recording: RecordingPort[memoryview] | None = None
        opened: Device[memoryview] | None = None
        try:
            if settings.record is not None:
                header = Header.of(settings.driver, options, capabilities, moving, epoch)
                writer = LogWriter(settings.record, header)
                recording = RecordingPort(port, writer, moving)
            opened = Device(recording or port, capabilities, moving, tau, epoch)
            await opened.examine(calibrate=settings.calibrate)
        except BaseException:  # an interrupt of the caller among them
            if opened is not None:
                await opened.close()
            await port.close()
            if recording is not None:
                await recording.close()
            raise
        return cls(opened, port, recording)

    async def info(self, *, timeout: float) -> Info:
        """Return what the device is and how it stands."""
        self.known = info_from(describe(self.device))
        return self.known

    async def time(self, *, timeout: float) -> Exchange:
        """Ask for the device's time."""
        device = self.device
        sent = time.monotonic()
        now = device.clock.now()
        return Exchange(sent, time.monotonic(), now, now, device.epoch, device.clock.rate)

    async def report(self, *, timeout: float) -> dict[str, float]:
        """Return counts of what has happened on the device, by name."""
        return await _within(timeout, "report", self.device.report())

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

    async def _take(self, holder: str, ttl: float, bytes_by_path: Counter[str], *, timeout: float) -> InprocLease:
        return InprocLease(self, self.device.open_session(holder, ttl), bytes_by_path)


def _settings(device: dict[str, Any]) -> DeviceSettings:
    try:
        return DeviceSettings.model_validate(device)
    except ValidationError as error:
        problems = {".".join(map(str, problem["loc"])): problem for problem in error.errors()}
    known = ", ".join(sorted(DeviceSettings.model_fields))
    field, first = next(iter(problems.items()))
    expected = (
        f"one of {known}" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Input should be ")
    )
    words = "; ".join(name + problem_of(one, known) for name, one in problems.items())
    raise InvalidProgram(words, field=field, found=first["input"], expected=expected)


class _InprocUpload(SingleUpload):
    _lease: InprocLease
    _path = "in-process"
    _header: pb.ProgramHeader | None = None
    _payload: memoryview | None = None

    async def _send_ahead(self) -> None:
        # The copy is made outside the event loop, which has the interpreter's other threads to wait for.
        header, tensors = wire.operator_header(self.operator, self._precision)
        wire.layout(header, **self._lease.link.device.admit(self._lease.ref))
        views = wire.byte_views(tensors)
        payload = aligned(sum(map(len, views)) + 2 * wire.WIDEST * self.operator.parameters)  # with drive and start
        self._sent_bytes = await asyncio.to_thread(fill, payload, views)
        self._payload = payload
        self._header = header

    async def _send_rest(self, program: Program, *, timeout: float) -> AsyncGenerator[Applied | Reading, None]:
        deadline = asyncio.get_running_loop().time() + timeout
        device, ref = self._lease.link.device, self._lease.ref
        if self._header is None:
            header, tensors = wire.header_of(program)
        else:
            header, (late, tensors) = self._header, wire.late_header(program)
            header.MergeFrom(late)
        layout = wire.layout(header, **device.admit(ref))
        views = wire.byte_views(tensors)
        payload, self._payload = self._payload, None
        if payload is None:
            payload = aligned(sum(map(len, views)))
        self._sent_bytes += fill(payload[self._sent_bytes :], views)
        payload = payload[: self._sent_bytes]
        programmed = await until(deadline, "program", device.program(ref, layout, payload))
        try:
            yield programmed.applied
            for reading in programmed.readings:
                yield await until(deadline, "program", reading)
        finally:
            for reading in programmed.readings:
                reading.cancel()

    async def _release(self) -> None:
        self._payload = None


class InprocLease(Lease):
    """Exclusive use of a device of this process.

    Attributes:
        ref: what the device knows it by.
    """

    link: InprocLink
    upload_type = _InprocUpload

    def __init__(self, link: InprocLink, ref: SessionKey, bytes_by_path: Counter[str]) -> None:
        super().__init__(link, link.known, ref.epoch, ref.fencing, bytes_by_path)
        self.ref = ref

    async def save_state(self, *, timeout: float) -> bytes:
        """Return the device's whole state."""
        return bytes(await _within(timeout, "save_state", self.link.device.save(self.ref)))

    async def renew(self, *, timeout: float) -> None:
        """Keep the device."""
        self.link.device.sessions.check(self.ref)

    async def release(self, *, timeout: float) -> None:
        """Give the device back."""
        self.link.device.close_session(self.ref)

    async def _advance(self, duration: float, *, timeout: float) -> float:
        return await _within(timeout, "advance", self.link.device.advance(self.ref, duration))

    async def _read(self, at: float | None, window: float, *, timeout: float) -> Reading:
        return await _within(timeout, "read", self.link.device.read(self.ref, at, window))

    async def _restore_state(self, state: bytes, *, timeout: float) -> Restored:
        self.link.device.check_restore(self.ref, len(state))
        return await _within(timeout, "restore_state", self.link.device.restore(self.ref, memoryview(state)))


async def _within(timeout: float, call: str, awaitable: Awaitable[T]) -> T:
    return await until(asyncio.get_running_loop().time() + timeout, call, awaitable)
