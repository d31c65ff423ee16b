"""One upload on its way in: its parts in their order, and where its bytes lie."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, Literal, TypeAlias

import grpc

from spu_link import wire
from spu_link.errors import ProtocolError, SpuError, UploadCorrupt
from spu_link.operators.base import mismatch
from spu_server.device import Device
from spu_server.memory import Payload, SharedBytes, Stretch
from spu_server.regions import Regions
from tngd.spu.v1 import spu_pb2 as pb

HEADER_SECONDS = 10.0
"""Longest wait for an upload's header."""

DRAIN_SECONDS = 1.0
"""Longest silence of a client that is still sending an upload which has been refused."""

ADMITTED = (("admitted", "1"),)
"""Initial metadata: the header is accepted."""

PARTS: tuple[Literal["header", "chunk", "trailer"], ...] = ("header", "chunk", "trailer")

Received: TypeAlias = tuple[pb.ProgramHeader, Payload, Sequence[Stretch | None]]
"""A complete header, the bytes of its tensors, and a place for each reading."""


class Upload:
    """Receives the upload of one call.

    Args:
        requests: the call's messages.
        device: what the upload is for.
        regions: memory that clients share.
    """

    def __init__(self, requests: AsyncIterator[pb.ProgramRequest], device: Device[Payload], regions: Regions) -> None:
        self._requests = requests
        self._device = device
        self._regions = regions
        self._parts: deque[tuple[str, pb.ProgramRequest]] = deque()
        self._ended = False

    @asynccontextmanager
    async def received(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Received]:
        """The whole upload; its memory is held inside the block.

        Raises:
            SpuError: for an upload that is not what it must be. It leaves no trace.
        """
        header = (await self._next("header", None))[1].header
        layout = self._device.admit(header.session, header)
        with ExitStack() as uses:
            if not self._parts:
                await context.send_initial_metadata(ADMITTED)
            try:
                payload = await self._receive(header, layout, uses)
            except SpuError:
                await self._drain(layout.nbytes)
                raise
            places: Sequence[Stretch | None] = [None] * len(header.reads)
            if header.HasField("readings"):
                places = self._places(header, uses)
            yield header, payload, places

    async def _receive(self, header: pb.ProgramHeader, layout: wire.Layout, uses: ExitStack) -> Payload:
        if header.HasField("upload"):
            place = taken(self._regions, header.session, header.upload, "upload", uses)
            return await self._receive_shared(header, layout, place)
        if [part for part, _ in self._parts] == ["chunk", "trailer"] and not layout.open:
            return self._receive_whole(header, layout)
        payload = SharedBytes(layout.nbytes)
        uses.callback(payload.close)
        await self._receive_chunks(header, layout, payload)
        return payload

    def _receive_whole(self, header: pb.ProgramHeader, layout: wire.Layout) -> bytes:
        """All in one message."""
        request = self._parts.pop()[1]
        self._parts.clear()
        self._ended = True
        self._complete(header, layout, request.trailer)
        assembler = wire.Assembler(layout.nbytes, lambda offset, data: None)  # the message holds them already
        assembler.add(request.chunk)
        assembler.finish(request.trailer.crc32c)
        return request.chunk.data

    async def _receive_chunks(self, header: pb.ProgramHeader, layout: wire.Layout, payload: SharedBytes) -> None:
        assembler = wire.Assembler(layout.nbytes, payload.write)
        while True:
            # Each chunk is a call of the session: it renews it.
            patience = self._device.sessions.check(header.session)
            part, request = await self._next("chunk or trailer", patience, header.session)
            if part == "trailer":
                break
            assembler.add(request.chunk)
        layout = self._complete(header, layout, request.trailer)
        assembler.nbytes = payload.nbytes = layout.nbytes
        assembler.finish(request.trailer.crc32c)

    async def _receive_shared(self, header: pb.ProgramHeader, layout: wire.Layout, place: Stretch) -> Stretch:
        patience = self._device.sessions.check(header.session)
        trailer = (await self._next("trailer", patience, header.session))[1].trailer
        layout = self._complete(header, layout, trailer)
        if place.nbytes < layout.nbytes:
            raise mismatch("upload.nbytes", place.nbytes, f"at least {layout.nbytes}, the bytes of all tensors")
        return Stretch(place.region, place.offset, layout.nbytes)

    def _complete(self, header: pb.ProgramHeader, layout: wire.Layout, trailer: pb.ProgramTrailer) -> wire.Layout:
        if not layout.open:
            if trailer.HasField("late"):
                raise ProtocolError(
                    "the trailer adds to a header that is complete", field="late", found="set", expected="unset"
                )
            return layout
        wire.complete(header, trailer.late)
        layout = self._device.admit(header.session, header)
        if layout.open:
            raise mismatch("late.start", "unset", "START_KEEP, START_DRIVE or START_TENSOR")
        return layout

    def _places(self, header: pb.ProgramHeader, uses: ExitStack) -> Sequence[Stretch | None]:
        whole = taken(self._regions, header.session, header.readings, "readings", uses)
        drive = next(spec for spec in header.tensors if spec.role == pb.ROLE_DRIVE)
        size = wire.nbytes_of(drive)
        if whole.nbytes < size * len(header.reads):
            raise mismatch("readings.nbytes", whole.nbytes, f"at least {size * len(header.reads)}, {size} a reading")
        return [Stretch(whole.region, whole.offset + k * size, size) for k in range(len(header.reads))]

    async def _next(
        self, expected: str, patience: float | None, session: pb.SessionRef | None = None
    ) -> tuple[str, pb.ProgramRequest]:
        """The next part, and the message it came in.

        A client may fall silent between two parts, for instance while it differentiates, as long as its session lives.
        """
        if not self._parts:
            request = await self._message(expected, patience or HEADER_SECONDS, session)
            self._parts.extend((part, request) for part in PARTS if request.HasField(part))
            if not self._parts:
                self._parts.append(("nothing", request))
        part, request = self._parts.popleft()
        self._ended = part == "trailer"
        if part not in expected:
            raise ProtocolError(
                f"the upload has {part} where a {expected} should come", field="part", found=part, expected=expected
            )
        return part, request

    async def _message(self, expected: str, patience: float, session: pb.SessionRef | None) -> pb.ProgramRequest:
        loop = asyncio.get_running_loop()

        def wait_on() -> None:
            """Shortly before the limit: who has a living session has as much time again."""
            if session is not None and self._device.sessions.lives(session):
                limit.reschedule(loop.time() + patience)
                watches.append(loop.call_later(0.9 * patience, wait_on))

        watches = [loop.call_later(0.9 * patience, wait_on)]
        try:
            async with asyncio.timeout(patience) as limit:
                request = await anext(self._requests, None)
        except TimeoutError:
            raise UploadCorrupt(
                f"no {expected} came for {patience:g} s; nothing has changed, send again",
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

    async def _drain(self, nbytes: int) -> None:
        """Receive what is still being sent, and drop it: a status that meets a message on its way is lost in grpc."""
        with suppress(UploadCorrupt):
            while nbytes > 0 and not self._ended:
                request = await self._message("end", DRAIN_SECONDS, None)
                nbytes -= max(len(request.chunk.data), 1)
                self._ended = request.HasField("trailer")


def taken(regions: Regions, session: pb.SessionRef, place: pb.Place, field: str, uses: ExitStack) -> Stretch:
    """A place in a region of the session, in use until `uses` is closed.

    Raises:
        InvalidProgram: when the session has no such region, or the place does not lie in it.
    """
    region = regions.take(session.fencing, place.region)
    uses.callback(regions.release, region)
    if place.nbytes > region.nbytes or place.offset > region.nbytes - place.nbytes:
        raise mismatch(
            f"{field}.offset", f"{place.offset} for {place.nbytes} bytes", f"a place in a region of {region.nbytes}"
        )
    return Stretch(region, place.offset, place.nbytes)
