"""A driver whose calls are logged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import google_crc32c
import structlog

from spu_link import wire
from spu_link.errors import DeviceFault, SpuError
from spu_server.clock import Clock
from spu_server.drivers.base import Measured
from spu_server.drivers.port import DriverPort
from spu_server.event_log import Blob, Event, LogWriter
from spu_server.memory import Payload, pieces
from tngd.spu.v1 import spu_pb2 as pb

log = structlog.get_logger(__name__)

P = TypeVar("P", bound=Payload | bytearray)
T = TypeVar("T")

INLINE_BYTES = 1 << 20
"""Bytes up to this size, 1 ms, are written on the event loop itself."""

PIECE_BYTES = 1 << 20
"""Most bytes of a value that are copied at a time."""


class RecordingPort(DriverPort[P]):
    """Passes calls on to a driver that has been opened, and adds each to a log before its caller goes on.

    Calls run and are written in the order in which they are made. An upload is written while the driver looks at it. A
    client that changes shared memory during its own upload, which it must not, can make the log differ from what ran.

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
        self._calls: set[asyncio.Task[Any]] = set()
        self._writer: LogWriter | None = writer
        port.on_fault = self._faulted
        self._add(Event("start", clock.now()))

    async def stage(self, header: pb.ProgramHeader, payload: P) -> None:
        """Pass a program on, and write it down."""
        await self._in_turn(lambda: self._stage(header, payload))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Pass a call on, and write it down with its result."""
        return await self._in_turn(lambda: self._call(method, *arguments))

    async def close(self) -> None:
        """End the log. The driver belongs to whoever opened it, and is closed before."""
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._add(Event("close", self._clock.now()))
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _in_turn(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await a call. It goes on to its end, and into the log, though nobody may want its result any more."""

        async def run() -> T:
            async with self._turn:
                return await call()

        task = asyncio.get_running_loop().create_task(run())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await asyncio.shield(task)

    async def _stage(self, header: pb.ProgramHeader, payload: P) -> None:
        event = Event("stage", self._clock.now())
        nbytes = sum(wire.nbytes_of(spec) for spec in header.tensors)
        staging = asyncio.ensure_future(self._port.stage(header, payload))
        described = pb.ProgramHeader()
        described.CopyFrom(header)
        described.ClearField("session")  # whoever knows it has the device
        serialized = await self._store(described.SerializeToString())
        written = await self._put(nbytes, lambda: pieces(payload, PIECE_BYTES))
        if serialized is not None and written is not None:
            event = replace(event, arguments=(serialized, written))
        await self._outcome(event, staging)

    async def _call(self, method: str, *arguments: Any) -> Any:
        known = [await self._store(a) if isinstance(a, (bytes, bytearray)) else a for a in arguments]
        event = Event(method, self._clock.now(), tuple(known))
        made = getattr(self._port, method, None)  # a port has its own way with some of its calls
        result = made(*arguments) if made is not None else self._port.call(method, *arguments)
        return await self._outcome(event, result)

    async def _outcome(self, event: Event, result: Awaitable[T]) -> T:
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
        elif isinstance(value, (bytes, bytearray)):
            checksum = Blob(0, len(value), await asyncio.to_thread(google_crc32c.value, bytes(value)))
            event = replace(event, value=checksum, kept=False)
        self._add(event)
        return value

    async def _store(self, data: bytes | bytearray | memoryview) -> Blob | None:
        return await self._put(len(data), lambda: _split(data))

    async def _put(self, nbytes: int, data: Callable[[], Iterable[bytes]]) -> Blob | None:
        """Store bytes; None where nothing is recorded any more."""
        writer = self._writer
        if writer is None:
            return None
        try:
            if nbytes <= INLINE_BYTES:
                return writer.put(data())
            return await asyncio.to_thread(lambda: writer.put(data()))
        except OSError as error:
            self._give_up(error)
            return None

    def _add(self, event: Event) -> None:
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

    def _faulted(self, error: DeviceFault) -> None:
        self._add(Event("fault", self._clock.now(), fault=error.message))
        self.on_fault(error)


def _split(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    view = memoryview(data)
    return (bytes(view[start : start + PIECE_BYTES]) for start in range(0, len(view), PIECE_BYTES))
