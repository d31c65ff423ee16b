"""The link to a daemon, over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import ExitStack
from weakref import WeakSet

import google_crc32c
import grpc

from host_client.capacity import Info
from host_client.clock import Exchange
from host_client.links.base import Link, info_from, until
from host_client.links.lease import Lease
from host_client.links.memory import SharedMemory
from host_client.links.remote_calls import SMALL_BYTES, RemoteUpload, errors, next_of, receive
from spu_link import wire
from spu_link.addresses import channel_options, channel_target
from spu_link.errors import DeviceUnavailable
from spu_link.program import Reading, Restored
from tngd.spu.v1 import spu_pb2 as pb
from tngd.spu.v1 import spu_pb2_grpc

ATTEMPT_SECONDS = 10.0
"""How long one attempt to connect may take; one that is under way when the connection is closed ends only then."""

RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", int(1000 * ATTEMPT_SECONDS)),  # despite its name
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # else a new connection fails while an old one to the address pauses
]
"""Max pause before a daemon that was gone is looked for again; gRPC's own pauses grow to two minutes."""


class RemoteLink(Link):
    """A daemon behind an address.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT``.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        options = [*RECONNECT, *channel_options(address)]
        self._channel: grpc.aio.Channel | None = grpc.aio.insecure_channel(channel_target(address), options=options)
        self._memories: WeakSet[SharedMemory] = WeakSet()
        self._calls: spu_pb2_grpc.SpuServiceAsyncStub | None = spu_pb2_grpc.SpuServiceStub(self._channel)

    @property
    def stub(self) -> spu_pb2_grpc.SpuServiceAsyncStub:
        """The daemon's calls.

        Raises:
            DeviceUnavailable: after `close`.
        """
        if self._calls is None:
            raise DeviceUnavailable(f"the connection to {self.address} is closed", field="address", found=self.address)
        return self._calls

    async def info(self, *, timeout: float) -> Info:
        """Return what the device is and how it stands."""
        with errors(self.address, "GetInfo"):
            self.known = info_from(await self.stub.GetInfo(pb.GetInfoRequest(), timeout=timeout))
            return self.known

    async def time(self, *, timeout: float) -> Exchange:
        """Ask for the device's time."""
        with errors(self.address, "GetTime"):
            sent = time.monotonic()
            answer = await self.stub.GetTime(pb.GetTimeRequest(), timeout=timeout)
            return Exchange(sent, time.monotonic(), answer.received, answer.sent, answer.epoch, answer.rate)

    async def report(self, *, timeout: float) -> dict[str, float]:
        """Return what has happened on the device, in named numbers."""
        with errors(self.address, "GetReport"):
            answer = await self.stub.GetReport(pb.GetReportRequest(), timeout=timeout)
            return dict(answer.numbers)

    async def halt(self, reason: str, *, timeout: float) -> float:
        """Stop the device; return the device time of the halt."""
        with errors(self.address, "Halt"):
            return (await self.stub.Halt(pb.HaltRequest(reason=reason), timeout=timeout)).time

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        for memory in list(self._memories):
            memory.close()
        channel, self._channel = self._channel, None
        self._calls = None  # with it and the channel, descriptors and a thread of gRPC go
        if channel is not None:
            await channel.close()

    async def _take(self, holder: str, ttl: float, bytes_by_path: Counter[str], *, timeout: float) -> RemoteLease:
        with errors(self.address, "OpenSession"):
            request = pb.OpenSessionRequest(holder=holder, ttl=ttl)
            ref = (await self.stub.OpenSession(request, timeout=timeout)).session
        memory = None
        if self.known.memory_address:
            memory = SharedMemory(self.known.memory_address, ref, self.known.max_upload_bytes)
            self._memories.add(memory)
        return RemoteLease(self, ref, memory, bytes_by_path)


class RemoteLease(Lease):
    """Exclusive use of a daemon's device.

    Attributes:
        ref: what the daemon knows it by.
        memory: shared with the daemon; None where that cannot be.
    """

    link: RemoteLink
    upload_type = RemoteUpload

    def __init__(
        self, link: RemoteLink, ref: pb.SessionRef, memory: SharedMemory | None, bytes_by_path: Counter[str]
    ) -> None:
        super().__init__(link, link.known, ref.epoch, ref.fencing, bytes_by_path)
        self.ref, self.memory = ref, memory

    @property
    def copies_at_once(self) -> bool:
        """Over shared memory."""
        return self.memory is not None

    async def save_state(self, *, timeout: float) -> bytes:
        """Return the device's whole state.

        Raises:
            UploadCorrupt: when its bytes are not those that were sent.
        """
        address = self.link.address
        call = self.link.stub.SaveState(pb.SaveStateRequest(session=self.ref), timeout=timeout)
        with errors(address, "SaveState"), ExitStack() as stack:
            stack.callback(call.cancel)  # no error where it has ended
            buffer = bytearray((await next_of(call.read, address)).header.nbytes)
            assembler = wire.Assembler(len(buffer), wire.writer(buffer))
            while True:
                response = await next_of(call.read, address)
                if response.HasField("trailer"):
                    break
                assembler.add(response.chunk)
            assembler.finish(response.trailer.crc32c)
            return bytes(buffer)

    async def renew(self, *, timeout: float) -> None:
        """Keep the device."""
        with errors(self.link.address, "RenewSession"):
            await self.link.stub.RenewSession(pb.RenewSessionRequest(session=self.ref), timeout=timeout)

    async def release(self, *, timeout: float) -> None:
        """Give the device back."""
        if self.memory is not None:
            self.memory.close()
        with errors(self.link.address, "CloseSession"):
            await self.link.stub.CloseSession(pb.CloseSessionRequest(session=self.ref), timeout=timeout)

    async def _advance(self, duration: float, *, timeout: float) -> float:
        with errors(self.link.address, "Advance"):
            request = pb.AdvanceRequest(session=self.ref, duration=duration)
            return (await self.link.stub.Advance(request, timeout=timeout)).time

    async def _read(self, at: float | None, window: float, *, timeout: float) -> Reading:
        deadline = asyncio.get_running_loop().time() + timeout
        with errors(self.link.address, "Read"):
            return await until(deadline, "read", self._receive(at, window, timeout))

    async def _receive(self, at: float | None, window: float, timeout: float) -> Reading:
        stub, address = self.link.stub, self.link.address
        request, memory = pb.ReadRequest(session=self.ref, at=at, window=window), self.memory
        room = memory.reading_bytes if memory else 0
        region = await memory.take(room) if memory and room > SMALL_BYTES else None
        if region is None:
            return await receive(stub.Read(request, timeout=timeout).read, address, self.epoch, None)
        assert memory is not None
        request.into.CopyFrom(pb.Place(region=region.number, offset=0, nbytes=region.nbytes))
        try:
            call = stub.Read(request, timeout=timeout)
            reading = await receive(call.read, address, self.epoch, region)
        except BaseException:
            memory.drop(region)
            raise
        memory.put_back(region)
        return reading

    async def _restore_state(self, state: bytes, *, timeout: float) -> Restored:
        call = self.link.stub.RestoreState(timeout=timeout)

        async def send(request: pb.RestoreStateRequest) -> None:
            try:
                await call.write(request)
            except asyncio.InvalidStateError:  # the daemon has ended the call; its status says why
                await call

        with errors(self.link.address, "RestoreState"), ExitStack() as stack:
            stack.callback(call.cancel)
            await send(pb.RestoreStateRequest(header=pb.StateHeader(session=self.ref, nbytes=len(state))))
            # The first chunk follows when the header has been admitted: a refusal that comes while grpc writes is lost.
            if any(key == "admitted" for key, _ in await call.initial_metadata()):
                for chunk in wire.numbered(wire.chunks([memoryview(state)])):
                    await send(pb.RestoreStateRequest(chunk=chunk))
                await send(pb.RestoreStateRequest(trailer=pb.StateTrailer(crc32c=google_crc32c.value(state))))
            answer = await call
            return Restored(answer.time, answer.shift, answer.sequence, answer.epoch)
