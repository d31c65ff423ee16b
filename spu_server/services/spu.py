"""The SPU service: messages to calls of the device and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from typing import Any, NoReturn, TypeAlias

import google_crc32c
import grpc
import structlog
from google.rpc import code_pb2

from spu_link import wire
from spu_link.errors import DeviceFault, SpuError
from spu_link.program import Reading
from spu_link.status import to_status
from spu_server.clock import ClockKind
from spu_server.device import Device
from spu_server.memory import Payload, SharedBytes, Stretch, pieces
from spu_server.regions import Regions
from spu_server.services.incoming import ADMITTED, Incoming, IncomingUpload, key_of, take_place
from spu_server.stalls import Stalls
from spu_server.version import VERSION
from tngd.spu.v1 import spu_pb2 as pb
from tngd.spu.v1 import spu_pb2_grpc

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CLOCKS: dict[ClockKind, pb.ClockKind.ValueType] = {"free": pb.CLOCK_KIND_FREE, "stepped": pb.CLOCK_KIND_STEPPED}

SERVICE = pb.DESCRIPTOR.services_by_name["SpuService"].full_name

CODES = {code.value[0]: code for code in grpc.StatusCode}


class SpuService(spu_pb2_grpc.SpuServiceServicer):
    """Translates for one device.

    Args:
        device: the device.
        stalls: what watches the event loop.
        regions: memory that clients share.
        memory_address: where they register it; empty where they cannot.
    """

    def __init__(self, device: Device[Payload], stalls: Stalls, regions: Regions, memory_address: str = "") -> None:
        self._device = device
        self._stalls = stalls
        self._regions = regions
        self._memory_address = memory_address

    def add_to(self, server: grpc.aio.Server) -> None:
        """Let a server offer it."""
        spu_pb2_grpc.add_SpuServiceServicer_to_server(self, server)

    async def GetInfo(self, request: pb.GetInfoRequest, context: Context) -> pb.GetInfoResponse:
        """Return the properties and the status of the device."""
        info = describe(self._device)
        info.longest_stall = self._stalls.longest
        if self._memory_address and context.peer().startswith("unix:"):
            info.memory_address = self._memory_address
            info.features.append("shared-memory")
        return info

    async def GetTime(self, request: pb.GetTimeRequest, context: Context) -> pb.GetTimeResponse:
        """Device time now, twice."""
        device = self._device
        received = device.clock.now()
        return pb.GetTimeResponse(
            epoch=device.epoch, received=received, sent=device.clock.now(), rate=device.clock.rate
        )

    async def GetReport(self, request: pb.GetReportRequest, context: Context) -> pb.GetReportResponse:
        """Return the driver's counters."""
        async with _errors(context):
            return pb.GetReportResponse(numbers=await self._device.report())

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionResponse:
        """Take the device."""
        async with _errors(context):
            key = self._device.open_session(request.holder, request.ttl)
            log.info("session opened", holder=request.holder, ttl=request.ttl, fencing=key.fencing)
            session = pb.SessionRef(id=key.id, epoch=key.epoch, fencing=key.fencing)
            return pb.OpenSessionResponse(session=session, ttl=request.ttl)

    async def RenewSession(self, request: pb.RenewSessionRequest, context: Context) -> pb.RenewSessionResponse:
        """Heartbeat."""
        async with _errors(context):
            self._device.sessions.check(key_of(request.session))
            return pb.RenewSessionResponse(time=self._device.clock.now())

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionResponse:
        """Give the device back."""
        self._device.close_session(key_of(request.session))
        log.info("session closed", fencing=request.session.fencing)
        return pb.CloseSessionResponse()

    async def Program(
        self, request_iterator: AsyncIterator[pb.ProgramRequest], context: Context
    ) -> AsyncIterator[pb.ProgramResponse]:
        """Assemble and verify a program while the former one runs, apply it, and send the readings asked for."""
        async with _errors(context):
            upload = IncomingUpload(request_iterator, self._device, self._regions)
            async with upload.receive(context) as (key, program, payload, places):
                programmed = await self._device.program(key, program, payload)
                applied = programmed.applied
                try:
                    yield pb.ProgramResponse(applied=pb.Applied(sequence=applied.sequence, time=applied.time))
                    for pending, place in zip(programmed.readings, places, strict=True):
                        reading, chunk, chunks = await _deliver(await pending, place)
                        yield pb.ProgramResponse(reading=reading, chunk=chunk)
                        for chunk in chunks:
                            yield pb.ProgramResponse(chunk=chunk)
                finally:
                    for pending in programmed.readings:
                        pending.cancel()

    async def Advance(self, request: pb.AdvanceRequest, context: Context) -> pb.AdvanceResponse:
        """Move a stepped clock."""
        async with _errors(context):
            time = await self._device.advance(key_of(request.session), request.duration)
            return pb.AdvanceResponse(time=time)

    async def Read(self, request: pb.ReadRequest, context: Context) -> AsyncIterator[pb.ReadResponse]:
        """Take one reading."""
        async with _errors(context):
            at = request.at if request.HasField("at") else None
            key = key_of(request.session)
            self._device.sessions.check(key)
            with ExitStack() as uses:
                into = None
                if request.HasField("into"):
                    into = take_place(self._regions, key, request.into, "into", uses)
                value = await self._device.read(key, at, request.window)
                reading, chunk, chunks = await _deliver(value, into)
                yield pb.ReadResponse(reading=reading, chunk=chunk)
                for chunk in chunks:
                    yield pb.ReadResponse(chunk=chunk)

    async def SaveState(self, request: pb.SaveStateRequest, context: Context) -> AsyncIterator[pb.SaveStateResponse]:
        """Send the device's whole state."""
        async with _errors(context):
            file = await self._device.save(key_of(request.session))
            assert isinstance(file, SharedBytes)
            with closing(file):
                yield pb.SaveStateResponse(header=pb.StateHeader(nbytes=file.nbytes))
                crc = 0
                for chunk in wire.numbered(pieces(file, wire.CHUNK_BYTES)):
                    crc = google_crc32c.extend(crc, chunk.data)
                    yield pb.SaveStateResponse(chunk=chunk)
                yield pb.SaveStateResponse(trailer=pb.StateTrailer(crc32c=crc))

    async def RestoreState(
        self, request_iterator: AsyncIterator[pb.RestoreStateRequest], context: Context
    ) -> pb.RestoreStateResponse:
        """Assemble a saved state and apply it."""
        async with _errors(context):
            incoming = Incoming(request_iterator, self._device.sessions)
            header = (await incoming.next("header"))[1].header
            key = key_of(header.session)
            self._device.check_restore(key, header.nbytes)
            if not incoming.parts:
                await context.send_initial_metadata(ADMITTED)
            with closing(SharedBytes(header.nbytes, "spu-state")) as file:
                try:
                    assembler, last = await incoming.chunks(key, file)
                    assembler.finish(last.trailer.crc32c)
                except SpuError:
                    await incoming.drain(header.nbytes)
                    raise
                restored = await self._device.restore(key, file)
            log.info("state restored", device_time=restored.time, shift=restored.shift, sequence=restored.sequence)
            return pb.RestoreStateResponse(
                time=restored.time, shift=restored.shift, sequence=restored.sequence, epoch=restored.epoch
            )

    async def Halt(self, request: pb.HaltRequest, context: Context) -> pb.HaltResponse:
        """Stop at once."""
        async with _errors(context):
            time = await self._device.halt(request.reason)
            log.warning("halted", reason=request.reason, device_time=time)
            return pb.HaltResponse(time=time)


def describe(device: Device[Any]) -> pb.GetInfoResponse:
    """Return the properties and the status of a device."""
    holder = device.sessions.holder
    return pb.GetInfoResponse(
        driver=device.capabilities.name,
        version=VERSION,
        cells=device.capabilities.cells,
        max_upload_bytes=device.capabilities.max_bytes,
        tau=device.tau,
        clock=CLOCKS[device.clock.kind],
        rate=device.clock.rate,
        time=device.clock.now(),
        epoch=device.epoch,
        sequence=device.sequence,
        state=pb.DeviceState.Value(f"DEVICE_STATE_{device.state.name}"),
        fault=device.fault,
        restarts=device.restarts,
        session_held=holder is not None,
        session_holder=holder or "",
        features=device.features,
        calibrated=device.calibrated,
    )


async def _deliver(
    reading: Reading, place: Stretch | None
) -> tuple[pb.ReadingHeader, pb.Chunk | None, Iterator[pb.Chunk]]:
    """Write a reading's value where the client wants it, if it fits; else return its first chunk, and the others."""
    value = wire.byte_views([reading.value])[0]
    header = pb.ReadingHeader(
        time=reading.time,
        sequence=reading.sequence,
        age=reading.age,
        window=reading.window,
        value=wire.tensor_spec(reading.value),
        sent=reading.sent,
    )
    if place is not None and len(value) <= place.nbytes:
        if len(value) <= INLINE_BYTES:
            place.write(0, value)
        else:
            await asyncio.to_thread(place.write, 0, value)
        header.place.CopyFrom(pb.Place(region=place.region.number, offset=place.offset, nbytes=len(value)))
        return header, None, iter(())
    header.crc32c = google_crc32c.value(bytes(value))
    chunks = wire.numbered(wire.chunks([value]))
    return header, next(chunks), chunks


INLINE_BYTES = 1 << 20
"""Values up to this size are copied on the event loop itself."""


@asynccontextmanager
async def _errors(context: Context) -> AsyncIterator[None]:
    """Answer with the status of whatever goes wrong inside."""
    try:
        yield
    except SpuError as error:
        await _abort(context, error)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception as error:
        log.exception("internal error")
        await _abort(context, DeviceFault(f"the daemon itself failed: {error!r}; its log has the trace"))


async def _abort(context: Context, error: SpuError) -> NoReturn:
    log.log(
        logging.ERROR if isinstance(error, DeviceFault) else logging.INFO,
        "refused",
        reason=error.reason(),
        why=error.message,
    )
    status = to_status(error)
    code = CODES[code_pb2.Code.Value(error.code)]
    await context.abort(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
    raise AssertionError("abort raises")
