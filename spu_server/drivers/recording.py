"""A driver whose calls are logged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import structlog

from spu_link import wire
from spu_link.errors import DeviceFault, SpuError
from spu_server.clock import Clock
from spu_server.drivers.base import Measured
from spu_server.drivers.port import DriverPort
from spu_server.event_log import Blob, Event, LogWriter
from spu_server.memory import Payload, pieces
from spu_server.saved import Standing
from tngd.spu.v1 import spu_pb2 as pb

log = structlog.get_logger(__name__)

P = TypeVar("P", bound=Payload | bytearray | memoryview)
T = TypeVar("T")

INLINE_BYTES = 1 << 20
"""Bytes up to this size, 1 ms, are written on the event loop itself."""

PIECE_BYTES = 1 << 20
"""Maximum number of bytes of a value that are copied at a time."""


class _Bytes(NamedTuple):
    """Bytes that are read where they lie.

    Attributes:
        nbytes: how many.
        pieces: makes copies of them, piece by piece.
    """

    nbytes: int
    pieces: Callable[[], Iterable[bytes]]


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
        port.on_fault = self._faulted
        self._add(Event("start", clock.now()))

    async def stage(self, header: pb.ProgramHeader, payload: P) -> None:
        """Pass a program on, and write it down."""
        described = pb.ProgramHeader()
        described.CopyFrom(header)
        described.ClearField("session")  # whoever knows it has the device
        stored = _Bytes(_nbytes(payload), lambda: pieces(payload, PIECE_BYTES))
        await self._passed("stage", [described.SerializeToString(), stored], self._port.stage(header, payload))

    async def save(self, at: float, standing: Standing) -> P:
        """Pass on. Saving moves nothing, so a log is the same without."""
        return await self._port.save(at, standing)

    async def restore(self, payload: P) -> Standing:
        """Pass a saved state on, and write it down."""
        stored = _Bytes(_nbytes(payload), lambda: pieces(payload, PIECE_BYTES))
        return await self._passed("restore", [stored], self._port.restore(payload))

    async def report(self) -> Mapping[str, float]:
        """Pass on. It moves nothing either."""
        return await self._port.report()

    async def self_test(self) -> str:
        """Pass on. No reading depends on it."""
        return await self._port.self_test()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Pass a call on, and write it down with its result."""
        made = getattr(self._port, method, None)  # a port has its own way with some of its calls
        call = made(*arguments) if made is not None else self._port.call(method, *arguments)
        return await self._passed(method, arguments, call)

    def restarted(self) -> None:
        """Write down that the driver has been opened again, after the calls that failed."""
        self._task(self._note(Event("start", self._clock.now())))

    async def close(self) -> None:
        """End the log. The driver belongs to whoever opened it, and is closed before."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._add(Event("close", self._clock.now()))
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _passed(self, method: str, arguments: Sequence[Any], call: Coroutine[Any, Any, T]) -> T:
        """Await a call. It goes on to its end, and into the log, though nobody may want its result any more."""
        begun = asyncio.get_running_loop().create_task(call)
        return await asyncio.shield(self._task(self._written(method, arguments, begun)))

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _written(self, method: str, arguments: Sequence[Any], begun: asyncio.Task[T]) -> T:
        """The result of a call that has begun, once the calls before it and this one are written."""
        time = self._clock.now()
        async with self._turn:
            known = [await self._store(a) if isinstance(a, (bytes, bytearray, _Bytes)) else a for a in arguments]
            return await self._outcome(Event(method, time, tuple(known)), begun)

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
        self._add(event)
        return value

    async def _store(self, data: bytes | bytearray | memoryview | _Bytes) -> Blob | None:
        """Write bytes; None where nothing is recorded any more."""
        writer = self._writer
        if writer is None:
            return None
        source = data if isinstance(data, _Bytes) else _Bytes(len(data), lambda: _split(data))
        try:
            if source.nbytes <= INLINE_BYTES:
                return writer.put(source.pieces())
            return await asyncio.to_thread(lambda: writer.put(source.pieces()))
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
        self._task(self._note(Event("fault", self._clock.now(), fault=error.message)))
        self.on_fault(error)

    async def _note(self, event: Event) -> None:
        """Write down what is no call, in its turn."""
        async with self._turn:
            self._add(event)


def _nbytes(payload: Payload | bytearray | memoryview) -> int:
    return len(payload) if isinstance(payload, (bytes, bytearray)) else payload.nbytes


def _split(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    view = memoryview(data)
    return (bytes(view[start : start + PIECE_BYTES]) for start in range(0, len(view), PIECE_BYTES))
