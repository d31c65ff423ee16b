"""Uploads on their way in: header, chunks and trailer, each in its place, and where the bytes lie."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import grpc

from spu_link import wire
from spu_link.errors import ProtocolError, SpuError, UploadCorrupt, mismatch
from spu_server.device import Device
from spu_server.memory import Payload, SharedBytes, Stretch
from spu_server.regions import Regions
from spu_server.sessions import SessionKey, Sessions
from tngd.spu.v1 import spu_pb2 as pb

HEADER_SECONDS = 10.0
"""Longest wait for an upload's header."""

DRAIN_SECONDS = 1.0
"""Longest silence of a client that is still sending an upload which has been refused."""

ADMITTED = (("admitted", "1"),)
"""Initial metadata: the header is accepted."""

Received: TypeAlias = tuple[SessionKey, wire.Layout, Payload, Sequence[Stretch | None]]
"""Of an upload: its session's key, what its header says, the bytes of its tensors, and a place for each reading."""

Part = Literal["header", "chunk", "trailer"]
PARTS: tuple[Part, ...] = ("header", "chunk", "trailer")


class MessageWithParts(Protocol):
    """A message with parts."""

    @property
    def chunk(self) -> pb.Chunk:
        """Bytes."""

    def HasField(self, field_name: Part, /) -> bool:
        """Return whether it has a part."""


R = TypeVar("R", bound=MessageWithParts)


class Incoming(Generic[R]):
    """Receives the parts of one call.

    Args:
        requests: the call's messages.
        sessions: who may.

    Attributes:
        parts: those received and not yet taken, each with the message it came in.
        ended: whether the trailer has been taken.
    """

    def __init__(self, requests: AsyncIterator[R], sessions: Sessions) -> None:
        self.parts: deque[tuple[str, R]] = deque()
        self.ended = False
        self._requests = requests
        self._sessions = sessions

    async def next(self, expected: str, key: SessionKey | None = None) -> tuple[str, R]:
        """The next part, and the message it came in.

        Args:
            expected: names of the parts that may come.
            key: of the session that it belongs to, once that is known; a part is a call of it and renews it. A client
                may fall silent between two parts, for instance while it differentiates, as long as its session lives.

        Raises:
            ProtocolError: when another part comes.
            UploadCorrupt: when none does.
        """
        timeout = HEADER_SECONDS if key is None else self._sessions.check(key)
        if not self.parts:
            request = await self._message(expected, timeout, key)
            self.parts.extend((part, request) for part in PARTS if request.HasField(part))
            if not self.parts:
                self.parts.append(("nothing", request))
        part, request = self.parts.popleft()
        self.ended = part == "trailer"
        if part not in expected:
            raise ProtocolError(
                f"the upload has {part} where a {expected} should come", field="part", found=part, expected=expected
            )
        return part, request

    async def chunks(self, key: SessionKey, file: SharedBytes) -> tuple[wire.Assembler, R]:
        """Store all chunks; what has put them together, and the message with the trailer.

        Raises:
            UploadCorrupt: when a chunk is not where it must be.
        """
        assembler = wire.Assembler(file.nbytes, file.write)
        while True:
            part, request = await self.next("chunk or trailer", key)
            if part == "trailer":
                return assembler, request
            assembler.add(request.chunk)

    async def drain(self, nbytes: int) -> None:
        """Receive what is still being sent, and drop it: a status that meets a message on its way is lost in grpc."""
        with suppress(UploadCorrupt):
            while nbytes > 0 and not self.ended:
                request = await self._message("end", DRAIN_SECONDS, None)
                nbytes -= max(len(request.chunk.data), 1)
                self.ended = request.HasField("trailer")

    async def _message(self, expected: str, timeout: float, key: SessionKey | None) -> R:
        loop = asyncio.get_running_loop()

        def wait_on() -> None:
            """Shortly before the limit: who has a living session has as much time again."""
            if key is not None and self._sessions.lives(key):
                limit.reschedule(loop.time() + timeout)
                watches.append(loop.call_later(0.9 * timeout, wait_on))

        watches = [loop.call_later(0.9 * timeout, wait_on)]
        try:
            async with asyncio.timeout(timeout) as limit:
                request = await anext(self._requests, None)
        except TimeoutError:
            raise UploadCorrupt(
                f"no {expected} came for {timeout:g} s; nothing has changed, send again",
                field="part",
                found="silence",
                expected=expected,
            ) from None
        finally:
            watches[-1].cancel()
        if request is None:
            raise UploadCorrupt(
                f"the upload ended where a {expected} should come; nothing has changed, send again",
                field="part",
                found="end of stream",
                expected=expected,
            )
        return request


class IncomingUpload(Incoming[pb.ProgramRequest]):
    """Receives the upload of a program.

    Args:
        requests: the call's messages.
        device: what the upload is for.
        regions: memory that clients share.
    """

    def __init__(self, requests: AsyncIterator[pb.ProgramRequest], device: Device[Payload], regions: Regions) -> None:
        super().__init__(requests, device.sessions)
        self._device = device
        self._regions = regions

    @asynccontextmanager
    async def receive(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Received]:
        """Receive the whole upload; its memory is held inside the block.

        Raises:
            SpuError: for an upload that is not what it must be. It leaves no trace.
        """
        header = (await self.next("header"))[1].header
        key = key_of(header.session)
        layout = wire.layout(header, **self._device.admit(key))
        with ExitStack() as uses:
            if not self.parts:
                await context.send_initial_metadata(ADMITTED)
            try:
                layout, payload = await self._receive(key, header, layout, uses)
            except SpuError:
                await self.drain(layout.nbytes)
                raise
            places: Sequence[Stretch | None] = [None] * len(layout.reads)
            if header.HasField("readings"):
                whole = take_place(self._regions, key, header.readings, "readings", uses)
                size = layout.cells * layout.dtype.itemsize
                if whole.nbytes < size * len(places):
                    raise mismatch("readings.nbytes", whole.nbytes, f"at least {size * len(places)}, {size} a reading")
                places = [Stretch(whole.region, whole.offset + k * size, size) for k in range(len(places))]
            yield key, layout, payload, places

    async def _receive(
        self, key: SessionKey, header: pb.ProgramHeader, layout: wire.Layout, uses: ExitStack
    ) -> tuple[wire.Layout, Payload]:
        if header.HasField("upload"):
            place = take_place(self._regions, key, header.upload, "upload", uses)
            layout = self._complete(key, header, layout, (await self.next("trailer", key))[1].trailer)
            if place.nbytes < layout.nbytes:
                raise mismatch("upload.nbytes", place.nbytes, f"at least {layout.nbytes}, the bytes of all tensors")
            return layout, Stretch(place.region, place.offset, layout.nbytes)
        if [part for part, _ in self.parts] == ["chunk", "trailer"] and not layout.open:  # all in one message
            request = self.parts.pop()[1]
            self.parts.clear()
            self.ended = True
            self._complete(key, header, layout, request.trailer)
            assembler = wire.Assembler(layout.nbytes, lambda offset, data: None)  # the message holds them already
            assembler.add(request.chunk)
            assembler.finish(request.trailer.crc32c)
            return layout, request.chunk.data
        payload = SharedBytes(layout.nbytes)
        uses.callback(payload.close)
        assembler, request = await self.chunks(key, payload)
        layout = self._complete(key, header, layout, request.trailer)
        assembler.nbytes = payload.nbytes = layout.nbytes
        assembler.finish(request.trailer.crc32c)
        return layout, payload

    def _complete(
        self, key: SessionKey, header: pb.ProgramHeader, layout: wire.Layout, trailer: pb.ProgramTrailer
    ) -> wire.Layout:
        if not layout.open:
            if trailer.HasField("late"):
                raise ProtocolError(
                    "the trailer adds to a header that is complete", field="late", found="set", expected="unset"
                )
            return layout
        wire.complete(header, trailer.late)
        layout = wire.layout(header, **self._device.admit(key))
        if layout.open:
            raise mismatch("late.start", "unset", "START_KEEP, START_DRIVE or START_TENSOR")
        return layout


def key_of(session: pb.SessionRef) -> SessionKey:
    """Return what a client says that it has."""
    return SessionKey(session.id, session.epoch, session.fencing)


def take_place(regions: Regions, key: SessionKey, place: pb.Place, field: str, uses: ExitStack) -> Stretch:
    """Take a place in a region of the session, in use until `uses` is closed.

    Raises:
        InvalidProgram: when the session has no such region, or the place does not lie in it.
    """
    region = regions.take(key.fencing, place.region)
    uses.callback(regions.release, region)
    if place.nbytes > region.nbytes or place.offset > region.nbytes - place.nbytes:
        raise mismatch(
            f"{field}.offset", f"{place.offset} for {place.nbytes} bytes", f"a place in a region of {region.nbytes}"
        )
    return Stretch(region, place.offset, place.nbytes)
