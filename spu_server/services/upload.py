"""One upload on its way in: its parts in their order, and where its bytes lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeAlias

import grpc

from spu_link import wire
from spu_link.errors import ProtocolError, SpuError
from spu_link.operators.base import mismatch
from spu_server.device import Device
from spu_server.memory import Payload, SharedBytes, Stretch
from spu_server.regions import Regions
from spu_server.services.incoming import ADMITTED, Incoming
from tngd.spu.v1 import spu_pb2 as pb

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
        self._incoming = Incoming(requests, device.sessions)
        self._device = device
        self._regions = regions

    @asynccontextmanager
    async def received(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Received]:
        """The whole upload; its memory is held inside the block.

        Raises:
            SpuError: for an upload that is not what it must be. It leaves no trace.
        """
        header = (await self._incoming.next("header"))[1].header
        layout = self._device.admit(header.session, header)
        with ExitStack() as uses:
            if not self._incoming.parts:
                await context.send_initial_metadata(ADMITTED)
            try:
                payload = await self._receive(header, layout, uses)
            except SpuError:
                await self._incoming.drain(layout.nbytes)
                raise
            places: Sequence[Stretch | None] = [None] * len(header.reads)
            if header.HasField("readings"):
                places = self._places(header, uses)
            yield header, payload, places

    async def _receive(self, header: pb.ProgramHeader, layout: wire.Layout, uses: ExitStack) -> Payload:
        if header.HasField("upload"):
            place = taken(self._regions, header.session, header.upload, "upload", uses)
            return await self._receive_shared(header, layout, place)
        if [part for part, _ in self._incoming.parts] == ["chunk", "trailer"] and not layout.open:
            return self._receive_whole(header, layout)
        payload = SharedBytes(layout.nbytes)
        uses.callback(payload.close)
        await self._receive_chunks(header, layout, payload)
        return payload

    def _receive_whole(self, header: pb.ProgramHeader, layout: wire.Layout) -> bytes:
        """All in one message."""
        request = self._incoming.parts.pop()[1]
        self._incoming.parts.clear()
        self._incoming.ended = True
        self._complete(header, layout, request.trailer)
        assembler = wire.Assembler(layout.nbytes, lambda offset, data: None)  # the message holds them already
        assembler.add(request.chunk)
        assembler.finish(request.trailer.crc32c)
        return request.chunk.data

    async def _receive_chunks(self, header: pb.ProgramHeader, layout: wire.Layout, payload: SharedBytes) -> None:
        assembler, request = await self._incoming.chunks(header.session, payload)
        layout = self._complete(header, layout, request.trailer)
        assembler.nbytes = payload.nbytes = layout.nbytes
        assembler.finish(request.trailer.crc32c)

    async def _receive_shared(self, header: pb.ProgramHeader, layout: wire.Layout, place: Stretch) -> Stretch:
        trailer = (await self._incoming.next("trailer", header.session))[1].trailer
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
