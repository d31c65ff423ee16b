"""The calls of a daemon that carry tensors: programs on their way there, readings on their way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import google_crc32c
import grpc
from torch import Tensor

from host_client.links.base import Path, until
from host_client.links.lease import SingleUpload
from host_client.links.memory import Region
from spu_link import wire
from spu_link.errors import DeviceUnavailable
from spu_link.program import Applied, Program, Reading
from spu_link.status import from_rpc_error
from tngd.spu.v1 import spu_pb2 as pb

if TYPE_CHECKING:
    from host_client.links.remote import RemoteLease

SMALL_BYTES = 1 << 15
"""Uploads up to this size travel in the header's message: that costs less than to look after a region."""

ALIGNMENT = 64
"""Readings begin at multiples of this, in bytes."""

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.ProgramRequest, pb.ProgramResponse]"

Source: TypeAlias = Callable[[], Awaitable[Any]]
"""A call's ``read``; its messages are `ProgramResponse` or `ReadResponse`."""


class RemoteUpload(SingleUpload):
    """One call of Program.

    Over shared memory `_send_ahead` only fills the region, and one message says everything when the rest is known. Over
    gRPC the first chunk follows when the daemon has admitted the header, as a refusal that comes while grpc writes is
    lost.
    """

    _lease: RemoteLease
    _path: Path | None = "grpc"
    _region: Region | None = None
    _call: Call | None = None
    _begun: pb.ProgramHeader | None = None
    _clean = True  # nobody writes to or reads from the region
    _crc = 0

    async def _send_ahead(self) -> None:
        header, tensors = wire.operator_header(self.operator, self._precision)
        self._begun = header
        with errors(self._lease.link.address, "Program"):
            if await self._take(_nbytes(tensors) + 3 * wire.WIDEST * self.operator.parameters):
                await self._write(tensors)
            else:
                await self._send_header(header)
                await self._send_chunks(tensors)

    async def _send_rest(self, program: Program, *, timeout: float) -> AsyncGenerator[Applied | Reading, None]:
        deadline = asyncio.get_running_loop().time() + timeout
        address, epoch = self._lease.link.address, self._lease.epoch

        def in_time(awaitable: Awaitable[Any]) -> Awaitable[Any]:
            return until(deadline, "program", awaitable)

        expected = len(program.schedule.reads)
        with errors(address, "Program"):
            await in_time(self._send_program(program))
            assert self._call is not None
            applied = (await in_time(next_of(self._call.read, address))).applied
            self._clean = not expected
            yield Applied(applied.sequence, applied.time, epoch)
            while expected:
                reading = await in_time(receive(self._call.read, address, epoch, self._region))
                expected -= 1
                self._clean = not expected
                yield reading

    async def _release(self) -> None:
        if self._call is not None:
            self._call.cancel()  # no error where it has ended
        region, self._region = self._region, None
        if region is not None:
            assert self._lease.memory is not None
            if self._clean:
                self._lease.memory.put_back(region)
            else:
                self._lease.memory.drop(region)

    async def _send_program(self, program: Program) -> None:
        """Send what is still to come, the way that what went ahead has gone, or the best one."""
        if self._lease.memory is not None:
            self._lease.memory.reading_bytes = program.drive.nbytes
        if self._begun is None:
            header, tensors = wire.header_of(program)
        else:
            late, tensors = wire.late_header(program)
            if self._region is None:
                await self._send_chunks(tensors)
                await self._send(pb.ProgramRequest(trailer=pb.ProgramTrailer(crc32c=self._crc, late=late)))
                return
            header = self._begun
            header.MergeFrom(late)
        nbytes = self._sent_bytes + _nbytes(tensors)
        results = program.drive.nbytes * len(program.schedule.reads)
        if self._region is not None or (nbytes > SMALL_BYTES and await self._take(nbytes + ALIGNMENT + results)):
            await self._write(tensors)
            await self._send_place(header, results)
        elif nbytes <= wire.CHUNK_BYTES:
            chunk = next(wire.numbered(wire.chunks(wire.byte_views(tensors))))
            trailer = pb.ProgramTrailer(crc32c=google_crc32c.value(chunk.data))
            await self._send_header(header, chunk=chunk, trailer=trailer)
            self._sent_bytes = nbytes
        else:
            await self._send_header(header)
            await self._send_chunks(tensors)
            await self._send(pb.ProgramRequest(trailer=pb.ProgramTrailer(crc32c=self._crc)))

    async def _send_place(self, header: pb.ProgramHeader, results: int) -> None:
        """Say where in the region everything lies, and where readings of so many bytes in all may go behind it."""
        assert self._region is not None
        self._clean = False
        header.upload.CopyFrom(pb.Place(region=self._region.number, offset=0, nbytes=self._sent_bytes))
        behind = -(-self._sent_bytes // ALIGNMENT) * ALIGNMENT
        if results and behind + results <= self._region.nbytes:
            header.readings.CopyFrom(pb.Place(region=self._region.number, offset=behind, nbytes=results))
        await self._send_header(header, trailer=pb.ProgramTrailer())

    async def _take(self, nbytes: int) -> bool:
        if self._lease.memory is not None:
            self._region = await self._lease.memory.take(nbytes)
        if self._region is not None:
            self._path = "shared-memory"
        return self._region is not None

    async def _write(self, tensors: Sequence[Tensor]) -> None:
        """Append to the region."""
        assert self._region is not None
        self._clean = False
        self._sent_bytes = await self._region.write(self._sent_bytes, tensors)
        self._clean = True

    async def _send_header(
        self, header: pb.ProgramHeader, chunk: pb.Chunk | None = None, trailer: pb.ProgramTrailer | None = None
    ) -> None:
        header.session.CopyFrom(self._lease.ref)
        self._call = self._lease.link.stub.Program()
        await self._send(pb.ProgramRequest(header=header, chunk=chunk, trailer=trailer))
        if trailer is None and not any(key == "admitted" for key, _ in await self._call.initial_metadata()):
            await next_of(self._call.read, self._lease.link.address)  # raises what the daemon's status says

    async def _send_chunks(self, tensors: Iterable[Tensor]) -> None:
        for data in wire.chunks(wire.byte_views(tensors)):
            self._crc = google_crc32c.extend(self._crc, data)
            await self._send(pb.ProgramRequest(chunk=pb.Chunk(offset=self._sent_bytes, data=data)))
            self._sent_bytes += len(data)

    async def _send(self, request: pb.ProgramRequest) -> None:
        assert self._call is not None
        try:
            await self._call.write(request)
        except asyncio.InvalidStateError:  # the daemon has ended the call; its status says why
            await next_of(self._call.read, self._lease.link.address)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


async def next_of(read: Source, address: str) -> Any:
    """The next message of a call.

    Raises:
        DeviceUnavailable: when there is none.
    """
    response = await read()
    if response is grpc.aio.EOF:
        raise DeviceUnavailable(f"{address} ended the call before its answer was complete")
    return response


async def receive(read: Source, address: str, epoch: int, region: Region | None) -> Reading:
    """Receive one reading of an epoch: its header, and its value in chunks or in the call's region.

    Raises:
        UploadCorrupt: when the bytes are not those that were sent.
    """
    response = await next_of(read, address)
    header = response.reading
    if region is not None and header.HasField("place"):
        value = await region.read(header.value, header.place.offset)
    else:
        buffer = bytearray(wire.nbytes_of(header.value))
        assembler = wire.Assembler(len(buffer), wire.writer(buffer))
        left = len(buffer)
        while True:
            assembler.add(response.chunk)
            left -= len(response.chunk.data)
            if left <= 0:
                break
            response = await next_of(read, address)
        assembler.finish(header.crc32c)
        value = wire.tensor_from(header.value, memoryview(buffer))
    return Reading(value, header.time, header.sequence, header.age, header.window, header.sent, epoch)


@contextmanager
def errors(address: str, call: str) -> Iterator[None]:
    """Raise what the daemon's status says, whenever gRPC reports one inside."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.details() == "Internal error from Core":
            # Of a message that could not be written; a daemon that refuses hears us out first.
            raise DeviceUnavailable(f"{call}: the connection to {address} broke off while bytes were sent") from None
        raise from_rpc_error(error, call=call, address=address) from None
    except grpc.aio.UsageError:
        raise _closed_error(call, address) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _closed_error(call, address) from None  # gRPC cancels the calls of a channel that is closed


def _closed_error(call: str, address: str) -> DeviceUnavailable:
    return DeviceUnavailable(f"{call}: the connection to {address} is closed", field="address", found=address)
