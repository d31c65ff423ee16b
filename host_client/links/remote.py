"""The link to a daemon, over gRPC."""

from __future__ import annotations

import asyncio
import time

import grpc

from host_client.clock import Exchange
from host_client.links.base import Info, Link, Upload, until
from host_client.links.memory import SharedMemory
from host_client.links.responses import errors, received
from host_client.links.state import restored, saved
from host_client.links.upload import SMALL_BYTES, RemoteUpload
from spu_link.addresses import channel_options, channel_target
from spu_link.errors import DeviceUnavailable
from spu_link.operators import Operator
from spu_link.precision import Precision
from spu_link.program import Reading, Restored
from tngd.spu.v1 import spu_pb2 as pb
from tngd.spu.v1 import spu_pb2_grpc

RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # despite its name: how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # else a new connection fails while an old one to the address pauses
]
"""How soon a daemon that was gone is looked for again; gRPC's own pauses grow to two minutes."""


class RemoteLink(Link):
    """A daemon behind an address.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT``.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        options = [*RECONNECT, *channel_options(address)]
        self._channel: grpc.aio.Channel | None = grpc.aio.insecure_channel(channel_target(address), options=options)
        self._info: Info | None = None
        self._memories: dict[str, SharedMemory] = {}  # by the session's id
        self._calls: spu_pb2_grpc.SpuServiceAsyncStub | None = spu_pb2_grpc.SpuServiceStub(self._channel)

    @property
    def _stub(self) -> spu_pb2_grpc.SpuServiceAsyncStub:
        if self._calls is None:
            raise DeviceUnavailable(f"the connection to {self.address} is closed", field="address", found=self.address)
        return self._calls

    async def info(self, *, timeout: float) -> Info:
        """What the device is and how it stands."""
        with errors(self.address, "GetInfo"):
            self._info = Info.from_message(await self._stub.GetInfo(pb.GetInfoRequest(), timeout=timeout))
            return self._info

    async def time(self, *, timeout: float) -> Exchange:
        """Ask for the device's time."""
        with errors(self.address, "GetTime"):
            sent = time.monotonic()
            answer = await self._stub.GetTime(pb.GetTimeRequest(), timeout=timeout)
            return Exchange(sent, time.monotonic(), answer.received, answer.sent, answer.epoch, answer.rate)

    async def report(self, *, timeout: float) -> dict[str, float]:
        """What has happened on the device, in named numbers."""
        with errors(self.address, "GetReport"):
            answer = await self._stub.GetReport(pb.GetReportRequest(), timeout=timeout)
            return dict(answer.numbers)

    async def open_session(self, holder: str, ttl: float, *, timeout: float) -> pb.SessionRef:
        """Take the device."""
        with errors(self.address, "OpenSession"):
            request = pb.OpenSessionRequest(holder=holder, ttl=ttl)
            session = (await self._stub.OpenSession(request, timeout=timeout)).session
        if self._info is not None and self._info.memory_address:
            self._memories[session.id] = SharedMemory(self._info.memory_address, session, self._info.max_upload_bytes)
        return session

    async def renew(self, session: pb.SessionRef, *, timeout: float) -> None:
        """Heartbeat."""
        with errors(self.address, "RenewSession"):
            await self._stub.RenewSession(pb.RenewSessionRequest(session=session), timeout=timeout)

    async def close_session(self, session: pb.SessionRef, *, timeout: float) -> None:
        """Give the device back."""
        if memory := self._memories.pop(session.id, None):
            memory.close()
        with errors(self.address, "CloseSession"):
            await self._stub.CloseSession(pb.CloseSessionRequest(session=session), timeout=timeout)

    def copies_at_once(self, session: pb.SessionRef) -> bool:
        """Over shared memory."""
        return session.id in self._memories

    def upload(self, session: pb.SessionRef, operator: Operator, precision: Precision | None) -> Upload:
        """A program on its way to the daemon."""
        memory = self._memories.get(session.id)
        return RemoteUpload(self._stub.Program, self.address, session, operator, precision, memory)

    async def advance(self, session: pb.SessionRef, duration: float, *, timeout: float) -> float:
        """Move a stepped clock; the new device time."""
        with errors(self.address, "Advance"):
            request = pb.AdvanceRequest(session=session, duration=duration)
            return (await self._stub.Advance(request, timeout=timeout)).time

    async def read(self, session: pb.SessionRef, at: float | None, window: float, *, timeout: float) -> Reading:
        """Take one reading."""
        deadline = asyncio.get_running_loop().time() + timeout
        with errors(self.address, "Read"):
            return await until(deadline, "read", self._read(session, at, window, timeout))

    async def _read(self, session: pb.SessionRef, at: float | None, window: float, timeout: float) -> Reading:
        request = pb.ReadRequest(session=session, at=at, window=window)
        memory = self._memories.get(session.id)
        room = memory.reading_bytes if memory else 0
        region = await memory.take(room) if memory and room > SMALL_BYTES else None
        if region is None:
            return await received(self._stub.Read(request, timeout=timeout).read, self.address, session.epoch, None)
        assert memory is not None
        request.into.CopyFrom(pb.Place(region=region.number, offset=0, nbytes=region.nbytes))
        try:
            call = self._stub.Read(request, timeout=timeout)
            reading = await received(call.read, self.address, session.epoch, region)
        except BaseException:
            memory.drop(region)
            raise
        memory.give_back(region)
        return reading

    async def save_state(self, session: pb.SessionRef, *, timeout: float) -> bytes:
        """The device's whole state."""
        return await saved(self._stub.SaveState(pb.SaveStateRequest(session=session), timeout=timeout), self.address)

    async def restore_state(self, session: pb.SessionRef, state: bytes, *, timeout: float) -> Restored:
        """Let a saved state take hold."""
        return await restored(self._stub.RestoreState(timeout=timeout), self.address, session, state)

    async def halt(self, reason: str, *, timeout: float) -> float:
        """Stop the device; the device time of the halt."""
        with errors(self.address, "Halt"):
            return (await self._stub.Halt(pb.HaltRequest(reason=reason), timeout=timeout)).time

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        for memory in self._memories.values():
            memory.close()
        self._memories.clear()
        channel, self._channel = self._channel, None
        self._calls = None  # with it and the channel, descriptors and a thread of gRPC go
        if channel is not None:
            await channel.close()
