"""The SPU service: messages to calls of the device and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import google_crc32c
import grpc
import structlog
from google.rpc import code_pb2

from spu_link import wire
from spu_link.errors import DeviceFault, ProtocolError, SpuError, UploadCorrupt
from spu_link.program import Reading
from spu_link.status import to_status
from spu_server.clock import ClockKind
from spu_server.device import Device
from spu_server.memory import SharedBytes
from spu_server.stalls import Stalls
from spu_server.version import VERSION
from tngd.spu.v1 import spu_pb2 as pb
from tngd.spu.v1 import spu_pb2_grpc

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CLOCKS: dict[ClockKind, pb.ClockKind.ValueType] = {"free": pb.CLOCK_KIND_FREE, "stepped": pb.CLOCK_KIND_STEPPED}

CODES = {code.value[0]: code for code in grpc.StatusCode}


class SpuService(spu_pb2_grpc.SpuServiceServicer):
    """Translates for one device.

    Args:
        device: the device.
        stalls: what watches the event loop.
    """

    def __init__(self, device: Device[SharedBytes], stalls: Stalls) -> None:
        self._device = device
        self._stalls = stalls

    async def GetInfo(self, request: pb.GetInfoRequest, context: Context) -> pb.GetInfoResponse:
        """What the device is and how it stands."""
        info = describe(self._device)
        info.longest_stall = self._stalls.longest
        return info

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionResponse:
        """Take the device."""
        async with _errors(context):
            session = self._device.open_session(request.holder, request.ttl)
            log.info("session opened", holder=request.holder, ttl=request.ttl, fencing=session.fencing)
            return pb.OpenSessionResponse(session=session, ttl=request.ttl)

    async def RenewSession(self, request: pb.RenewSessionRequest, context: Context) -> pb.RenewSessionResponse:
        """Heartbeat."""
        async with _errors(context):
            self._device.sessions.check(request.session)
            return pb.RenewSessionResponse(time=self._device.clock.now())

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionResponse:
        """Give the device back."""
        self._device.close_session(request.session)
        log.info("session closed", fencing=request.session.fencing)
        return pb.CloseSessionResponse()

    async def Program(
        self, request_iterator: AsyncIterator[pb.ProgramRequest], context: Context
    ) -> AsyncIterator[pb.ProgramResponse]:
        """Assemble and verify beside the running program, let it take hold, and send the readings asked for."""
        async with _errors(context):
            header = (await self._next(request_iterator, "header", None)).header
            ref = header.session
            layout = self._device.admit(ref, header)
            with SharedBytes(layout.nbytes) as payload:
                await self._receive(request_iterator, ref, wire.Assembler(layout.nbytes, payload.write))
                programmed = await self._device.program(ref, header, payload)
            applied = programmed.applied
            try:
                yield pb.ProgramResponse(applied=pb.Applied(sequence=applied.sequence, time=applied.time))
                for pending in programmed.readings:
                    reading, chunks = _reading(await pending)
                    yield pb.ProgramResponse(reading=reading)
                    for chunk in chunks:
                        yield pb.ProgramResponse(chunk=chunk)
            finally:
                for pending in programmed.readings:
                    pending.cancel()

    async def Advance(self, request: pb.AdvanceRequest, context: Context) -> pb.AdvanceResponse:
        """Move a stepped clock."""
        async with _errors(context):
            return pb.AdvanceResponse(time=await self._device.advance(request.session, request.duration))

    async def Read(self, request: pb.ReadRequest, context: Context) -> AsyncIterator[pb.ReadResponse]:
        """Take one reading."""
        async with _errors(context):
            at = request.at if request.HasField("at") else None
            reading, chunks = _reading(await self._device.read(request.session, at, request.window))
            yield pb.ReadResponse(reading=reading)
            for chunk in chunks:
                yield pb.ReadResponse(chunk=chunk)

    async def Halt(self, request: pb.HaltRequest, context: Context) -> pb.HaltResponse:
        """Stop at once."""
        async with _errors(context):
            time = await self._device.halt(request.reason)
            log.warning("halted", reason=request.reason, device_time=time)
            return pb.HaltResponse(time=time)

    async def _receive(
        self, requests: AsyncIterator[pb.ProgramRequest], ref: pb.SessionRef, assembler: wire.Assembler
    ) -> None:
        while True:
            # Each chunk is a call of the session: it renews it, and an upload that stalls for the time to live is over.
            patience = self._device.sessions.check(ref)
            request = await self._next(requests, "chunk or trailer", patience)
            if request.WhichOneof("part") == "trailer":
                assembler.finish(request.trailer.crc32c)
                return
            assembler.add(request.chunk)

    async def _next(
        self, requests: AsyncIterator[pb.ProgramRequest], expected: str, patience: float | None
    ) -> pb.ProgramRequest:
        try:
            async with asyncio.timeout(patience or HEADER_SECONDS):
                request = await anext(requests)
        except StopAsyncIteration:
            raise UploadCorrupt(
                f"the upload ended where a {expected} should come; nothing has changed, send again",
                field="part",
                found="end of stream",
                expected=expected,
            ) from None
        except TimeoutError:
            raise UploadCorrupt(
                f"no {expected} came for {patience or HEADER_SECONDS:g} s; nothing has changed, send again",
                field="part",
                found="silence",
                expected=expected,
            ) from None
        part = request.WhichOneof("part") or "nothing"
        if part not in expected:
            raise ProtocolError(
                f"the upload has {part} where a {expected} should come", field="part", found=part, expected=expected
            )
        return request


HEADER_SECONDS = 10.0
"""Longest wait for an upload's header."""


def describe(device: Device[Any]) -> pb.GetInfoResponse:
    """What a device is and how it stands."""
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
        state=device.state.value,
        fault=device.fault,
        session_held=holder is not None,
        session_holder=holder or "",
        features=device.capabilities.features,
    )


def _reading(reading: Reading) -> tuple[pb.ReadingHeader, Iterator[pb.Chunk]]:
    views = wire.byte_views([reading.value])
    header = pb.ReadingHeader(
        time=reading.time,
        sequence=reading.sequence,
        age=reading.age,
        window=reading.window,
        value=wire.tensor_spec(reading.value),
        crc32c=google_crc32c.value(bytes(views[0])),
        sent=reading.sent,
    )
    return header, wire.numbered(wire.chunks(views))


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
