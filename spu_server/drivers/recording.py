"""A driver whose calls are logged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar, TypeVarTuple

import structlog

from spu_link import wire
from spu_link.errors import DeviceFault, SpuError
from spu_server.clock import Clock
from spu_server.drivers.base import Measured
from spu_server.drivers.event_log import Blob, LoggedCall, LogWriter
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.port import DriverPort
from spu_server.drivers.saved import Standing
from spu_server.memory import Payload, pieces

log = structlog.get_logger(__name__)

Stored: TypeAlias = Payload | bytearray | memoryview
"""Arguments and results that are written as bytes."""

P = TypeVar("P", bound=Stored)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

INLINE_BYTES = 1 << 20
"""Bytes up to this size, 1 ms, are written on the event loop itself."""

PIECE_BYTES = 1 << 20
"""Maximum number of bytes of a value that are copied at a time."""


class RecordingPort(DriverPort[P]):
    """Passes calls on to a driver that has been opened, and adds each to a log before its caller goes on.

    Calls run, and are written, in the order in which they are made. An upload is written while the driver looks at it:
    a client that changes shared memory during its own upload, which it must not, can make the log differ from the run.

    When the log cannot be written any more, it ends there with a warning; the device goes on.

    Args:
        port: the driver.
        writer: the log; closed with the driver.
        clock: the device's.
    """

    def __init__(self, port: DriverPort[P], writer: LogWriter, clock: Clock) -> None:
        self._port = port
        self._clock = clock
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writer: LogWriter | None = writer
        port.on_fault = self._note_fault
        self._add(LoggedCall("start", clock.now()))

    async def stage(self, header: bytes, payload: P) -> None:
        """Pass a program on, and write it down."""
        await self._record_call("stage", (header, payload), self._port.stage(header, payload))

    async def save(self, at: float, standing: Standing) -> P:
        """Pass on. Saving moves nothing, so a log is the same without."""
        return await self._port.save(at, standing)

    async def restore(self, payload: P) -> Standing:
        """Pass a saved state on, and write it down."""
        return await self._record_call("restore", (payload,), self._port.restore(payload))

    async def call(self, method: Callable[[CheckedDriver, *Ts], T], *arguments: *Ts) -> T:
        """Pass a call on, and write it down unless no reading depends on it."""
        call = self._port.call(method, *arguments)
        if method in (CheckedDriver.report, CheckedDriver.self_test, CheckedDriver.clock):
            return await call
        return await self._record_call(method.__name__, arguments, call)

    async def read(self, at: float, window: int | None) -> Measured:
        """Pass a call on, and write it down with the reading."""
        return await self._record_call("read", (at, window), self._port.read(at, window))

    async def halt(self, at: float) -> None:
        """Pass a call on, and write it down."""
        await self._record_call("halt", (at,), self._port.halt(at))

    def note_restart(self) -> None:
        """Write down that the driver has been opened again, after the calls that failed."""
        self._task(self._note(LoggedCall("start", self._clock.now())))

    async def close(self) -> None:
        """End the log. The driver belongs to whoever opened it, and is closed before."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._add(LoggedCall("close", self._clock.now()))
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _record_call(self, method: str, arguments: Sequence[Any], call: Coroutine[Any, Any, T]) -> T:
        """Await a call. It goes on to its end, and into the log, though nobody may want its result any more."""
        begun = asyncio.get_running_loop().create_task(call)
        return await asyncio.shield(self._task(self._write_call(method, arguments, begun)))

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _write_call(self, method: str, arguments: Sequence[Any], begun: asyncio.Task[T]) -> T:
        """Return the result of a call that has begun, once the calls before it and this one are written."""
        time = self._clock.now()
        async with self._turn:
            known = [await self._store(a) if isinstance(a, Stored) else a for a in arguments]
            return await self._outcome(LoggedCall(method, time, tuple(known)), begun)

    async def _outcome(self, event: LoggedCall, result: Awaitable[T]) -> T:
        try:
            value = await result
        except DeviceFault as error:
            self._add(replace(event, fault=error.message))
            raise
        except SpuError as error:
            self._add(replace(event, refused=error.reason()))
            raise
        if isinstance(value, Measured):
            blob = await self._store(wire.byte_views([value.value])[0])
            taken = value.time if value.time != event.arguments[0] else None
            event = replace(event, value=blob, dtype=str(value.value.dtype).removeprefix("torch."), taken=taken)
        self._add(event)
        return value

    async def _store(self, data: Stored) -> Blob | None:
        """Write bytes; None where nothing is recorded any more."""
        writer = self._writer
        if writer is None:
            return None
        source = pieces(data, PIECE_BYTES)
        try:
            if (len(data) if isinstance(data, (bytes, bytearray, memoryview)) else data.nbytes) <= INLINE_BYTES:
                return writer.put(source)
            return await asyncio.to_thread(writer.put, source)
        except OSError as error:
            self._give_up(error)
            return None

    def _add(self, event: LoggedCall) -> None:
        if self._writer is not None:
            try:
                self._writer.add(event)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        assert self._writer is not None
        log.warning("recording has ended; the device goes on", log=str(self._writer.folder), why=str(error))
        self._writer.close()
        self._writer = None

    def _note_fault(self, error: DeviceFault) -> None:
        self._task(self._note(LoggedCall("fault", self._clock.now(), fault=error.message)))
        self.on_fault(error)

    async def _note(self, event: LoggedCall) -> None:
        """Write down what is no call, in its turn."""
        async with self._turn:
            self._add(event)
