"""The link to a daemon, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import google_crc32c
import grpc
from torch import Tensor

from host_client.links.base import Info, Link, ReadPlan
from spu_link import wire
from spu_link.errors import DeviceUnavailable
from spu_link.program import Applied, Program, Reading
from spu_link.status import from_rpc_error
from tngd.spu.v1 import spu_pb2 as pb
from tngd.spu.v1 import spu_pb2_grpc

Response = TypeVar("Response", pb.ProgramResponse, pb.ReadResponse)


PAUSES = (0.0, 0.1, 1.0)
"""Seconds between an upload's header and its bytes: first none, then long enough to hear why the header is refused."""


class RemoteLink(Link):
    """A daemon behind an address.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT``.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address)
        self._stub: spu_pb2_grpc.SpuServiceAsyncStub = spu_pb2_grpc.SpuServiceStub(self._channel)

    async def info(self, *, timeout: float) -> Info:
        """What the device is and how it stands."""
        with self._errors("GetInfo"):
            return Info.from_message(await self._stub.GetInfo(pb.GetInfoRequest(), timeout=timeout))

    async def open_session(self, holder: str, ttl: float, *, timeout: float) -> pb.SessionRef:
        """Take the device."""
        with self._errors("OpenSession"):
            request = pb.OpenSessionRequest(holder=holder, ttl=ttl)
            return (await self._stub.OpenSession(request, timeout=timeout)).session

    async def renew(self, session: pb.SessionRef, *, timeout: float) -> None:
        """Heartbeat."""
        with self._errors("RenewSession"):
            await self._stub.RenewSession(pb.RenewSessionRequest(session=session), timeout=timeout)

    async def close_session(self, session: pb.SessionRef, *, timeout: float) -> None:
        """Give the device back."""
        with self._errors("CloseSession"):
            await self._stub.CloseSession(pb.CloseSessionRequest(session=session), timeout=timeout)

    async def program(
        self,
        session: pb.SessionRef,
        program: Program,
        reads: Sequence[ReadPlan],
        not_before: float | None,
        *,
        timeout: float,
    ) -> AsyncGenerator[Applied | Reading, None]:
        """Upload a program: first when it took hold, then each reading, in the order of their times."""
        header, tensors = wire.header_of(program)
        header.session.CopyFrom(session)
        header.reads.extend(pb.ScheduledRead(after=read.after, window=read.window) for read in reads)
        if not_before is not None:
            header.not_before = not_before
        with self._errors("Program"):
            for pause in PAUSES:
                call = self._stub.Program(_upload(header, tensors, pause), timeout=timeout)
                responses = aiter(call)
                try:
                    applied = (await self._next(responses)).applied
                    break
                except grpc.aio.AioRpcError as error:
                    # A refusal that comes while grpc writes the next message is lost: it says no more than this. What
                    # was refused left no trace and is refused again, this time while nothing is being written.
                    if error.details() != "Internal error from Core" or pause == PAUSES[-1]:
                        raise
                except BaseException:
                    call.cancel()
                    raise
            try:
                yield Applied(applied.sequence, applied.time)
                for _ in reads:
                    yield await self._receive(responses)
            finally:
                call.cancel()  # no error where the call has ended

    async def advance(self, session: pb.SessionRef, duration: float, *, timeout: float) -> float:
        """Move a stepped clock; the new device time."""
        with self._errors("Advance"):
            request = pb.AdvanceRequest(session=session, duration=duration)
            return (await self._stub.Advance(request, timeout=timeout)).time

    async def read(self, session: pb.SessionRef, at: float | None, window: float, *, timeout: float) -> Reading:
        """Take one reading."""
        with self._errors("Read"):
            request = pb.ReadRequest(session=session, at=at, window=window)
            return await self._receive(aiter(self._stub.Read(request, timeout=timeout)))

    async def halt(self, reason: str, *, timeout: float) -> float:
        """Stop the device; the device time of the halt."""
        with self._errors("Halt"):
            return (await self._stub.Halt(pb.HaltRequest(reason=reason), timeout=timeout)).time

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()

    async def _receive(self, responses: AsyncIterator[Response]) -> Reading:
        header = (await self._next(responses)).reading
        buffer = bytearray(wire.nbytes_of(header.value))
        assembler = wire.Assembler(len(buffer), wire.writer(buffer))
        received = 0
        while received < len(buffer):
            chunk = (await self._next(responses)).chunk
            assembler.add(chunk)
            received += len(chunk.data)
        assembler.finish(header.crc32c)
        value = wire.tensor_from(header.value, memoryview(buffer))
        return Reading(value, header.time, header.sequence, header.age, header.window, header.sent)

    async def _next(self, responses: AsyncIterator[Response]) -> Response:
        try:
            return await anext(responses)
        except StopAsyncIteration:
            raise DeviceUnavailable(f"{self.address} ended the call before its answer was complete") from None

    @contextmanager
    def _errors(self, call: str) -> Iterator[None]:
        """Raise what the daemon's status says."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, call=call, address=self.address) from None
        except grpc.aio.UsageError:
            raise DeviceUnavailable(f"{call}: the connection to {self.address} is closed") from None


async def _upload(
    header: pb.ProgramHeader, tensors: Sequence[Tensor], pause: float
) -> AsyncIterator[pb.ProgramRequest]:
    yield pb.ProgramRequest(header=header)
    if pause:
        await asyncio.sleep(pause)
    crc = 0
    for chunk in wire.numbered(wire.chunks(wire.byte_views(tensors))):
        crc = google_crc32c.extend(crc, chunk.data)
        yield pb.ProgramRequest(chunk=chunk)
    yield pb.ProgramRequest(trailer=pb.ProgramTrailer(crc32c=crc))
