"""Memory that a client shares with a daemon on the same machine."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
import sys
import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from google.rpc import error_details_pb2, status_pb2
from torch import Tensor

from spu_link import wire
from spu_link.errors import SpuError
from tngd.spu.v1 import spu_pb2 as pb

if sys.platform == "linux":
    import fcntl

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_REGIONS = 4
"""Max number of regions of one session; further uploads at the same time go over gRPC."""

MAX_BYTES = 2 << 30
"""Largest region: uploads beyond go over gRPC, rather than lie in memory a second time."""

GRAIN = 1 << 20
"""Sizes of regions are multiples of this."""

INLINE_BYTES = 16 << 20
"""Copies up to this size, 2 ms, are made on the event loop itself."""

ANSWER_SECONDS = 5.0
"""Longest wait for an answer of the memory socket."""

PACKET_BYTES = 16384
"""Longest answer."""


class Region:
    """One piece of memory, mapped here and known to the daemon.

    Args:
        memory: its mapping.
        number: its name at the daemon.
    """

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        self.number = number
        self._bytes = np.frombuffer(memory, dtype=np.uint8)

    @property
    def nbytes(self) -> int:
        """Size."""
        return len(self._bytes)

    async def write(self, offset: int, tensors: Sequence[Tensor]) -> int:
        """Store contiguous tensors on the CPU one after the other, without padding; the position after the last one."""
        end = offset + sum(tensor.nbytes for tensor in tensors)
        if end - offset <= INLINE_BYTES:
            self._write(offset, tensors)
        else:
            await asyncio.to_thread(self._write, offset, tensors)
        return end

    def _write(self, offset: int, tensors: Sequence[Tensor]) -> None:
        for view in wire.byte_views(tensors):
            self._bytes[offset : offset + len(view)] = np.frombuffer(view, dtype=np.uint8)
            offset += len(view)

    async def read(self, spec: pb.TensorSpec, offset: int) -> Tensor:
        """A copy of the tensor at `offset`."""
        view = wire.tensor_from(spec, self._bytes.data, offset)
        if view.nbytes <= INLINE_BYTES:
            return torch.clone(view)
        return await asyncio.to_thread(torch.clone, view)


class SharedMemory:
    """The regions of one session.

    A call takes one and returns it; the next call finds it warm, without a page fault. Whatever goes wrong with the
    sharing is logged, and from then on there are no regions: the bytes then travel over gRPC.

    Args:
        address: of the daemon's memory socket, ``unix:PATH``.
        session: the session.
        max_bytes: max bytes of a region that the daemon takes.

    Attributes:
        reading_bytes: bytes of a reading under the last program; 0 before the first.
    """

    def __init__(self, address: str, session: pb.SessionRef, max_bytes: int) -> None:
        self.reading_bytes = 0
        self._address = address
        self._session = session
        self._max_bytes = min(max_bytes, MAX_BYTES)
        self._free: list[Region] = []
        self._held = 0  # regions that the daemon knows, or soon will
        self._socket: socket.socket | None = None
        self._asking = asyncio.Lock()
        self._unclaimed: set[asyncio.Task[Any]] = set()  # requests that nobody waits for
        self._broken = not hasattr(os, "memfd_create")

    async def take(self, nbytes: int) -> Region | None:
        """Return a region of at least `nbytes` for one call, to be returned or dropped; None where there is none."""
        if self._broken or nbytes > self._max_bytes:
            return None
        fitting = [region for region in self._free if region.nbytes >= nbytes]
        if not fitting:
            return await self._add_region(nbytes)
        region = min(fitting, key=lambda region: region.nbytes)
        self._free.remove(region)
        return region

    def put_back(self, region: Region) -> None:
        """Put a region back: its call has ended, and the daemon has nothing more to do with it."""
        if not self._broken:
            self._free.append(region)

    def drop(self, region: Region) -> None:
        """Take a region out of use: after a call that was broken off, the daemon may still read or write it.

        Nobody waits for the daemon to hear of it.
        """
        if not self._broken:
            self._complete(asyncio.create_task(self._unregister(region)))

    async def _unregister(self, region: Region) -> None:
        try:
            unregister = pb.MemoryRequest.Unregister(region=region.number)
            await self._ask(pb.MemoryRequest(session=self._session, unregister=unregister), [])
            self._held -= 1
        except (OSError, TimeoutError, SpuError) as error:
            self._give_up("shared memory ends, bytes travel over gRPC", error)

    def close(self) -> None:
        """Release everything; the daemon forgets it with the connection."""
        self._broken = True
        self._free.clear()
        for task in self._unclaimed - {asyncio.current_task()}:
            task.cancel()
        if self._socket is None:
            return
        if self._asking.locked():  # the loop watches the descriptor, and would not see the next socket with its number
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # ends the request, which closes it
        else:
            self._socket.close()

    async def _add_region(self, nbytes: int) -> Region | None:
        """Register a new region, with some room to spare; one that is too small makes way for it."""
        if self._free:
            await self._shield(self._unregister(self._free.pop(0)))
        if self._broken or self._held >= MAX_REGIONS:
            return None
        self._held += 1
        nbytes = min(-(-(nbytes + nbytes // 4) // GRAIN) * GRAIN, self._max_bytes)
        return await self._shield(self._try_register(nbytes), self._keep)

    async def _shield(self, request: Coroutine[Any, Any, T], unclaimed: Callable[[T], None] | None = None) -> T:
        """Complete a request even if the caller is cancelled: an answer left unread would be taken for the next one's.

        Args:
            request: what talks to the daemon.
            unclaimed: called with its result if the caller has been cancelled.
        """
        task = asyncio.create_task(request)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._complete(task, unclaimed)
            raise

    def _complete(self, task: asyncio.Task[T], unclaimed: Callable[[T], None] | None = None) -> None:
        """Complete a request that nobody waits for; `unclaimed` is called with its result."""
        self._unclaimed.add(task)

        def forget(task: asyncio.Task[T]) -> None:
            self._unclaimed.discard(task)
            if unclaimed is not None and not task.cancelled() and task.exception() is None:
                unclaimed(task.result())

        task.add_done_callback(forget)

    def _keep(self, region: Region | None) -> None:
        if region is not None:
            self.put_back(region)

    async def _try_register(self, nbytes: int) -> Region | None:
        try:
            return await self._register(nbytes)
        except (OSError, TimeoutError, SpuError) as error:
            self._give_up("no shared memory with the daemon, so bytes travel over gRPC", error)
            return None

    def _give_up(self, what: str, error: Exception) -> None:
        if not self._broken:  # else the session has been closed meanwhile
            log.warning("%s: %s", what, str(error))
        self.close()

    async def _register(self, nbytes: int) -> Region:
        descriptor = os.memfd_create("spu-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, nbytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            memory = mmap.mmap(descriptor, nbytes)
            request = pb.MemoryRequest(session=self._session, register=pb.MemoryRequest.Register())
            number = await self._ask(request, [descriptor])
        finally:
            os.close(descriptor)
        log.debug("region %d of %d bytes shared with %s", number, nbytes, self._address)
        return Region(memory, number)

    async def _ask(self, request: pb.MemoryRequest, descriptors: list[int]) -> int:
        loop = asyncio.get_running_loop()
        async with self._asking, asyncio.timeout(ANSWER_SECONDS):
            if self._broken:
                raise ConnectionError("the shared memory has been closed")
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    weakref.finalize(self, self._socket.close)  # also if an event loop ends without `close`
                    self._socket.setblocking(False)
                    await loop.sock_connect(self._socket, self._address.removeprefix("unix:"))
                socket.send_fds(self._socket, [request.SerializeToString()], descriptors)
                data = await loop.sock_recv(self._socket, PACKET_BYTES)
            finally:
                if self._broken and self._socket is not None:
                    self._socket.close()
        if not data:
            raise ConnectionError("the daemon has closed its memory socket")
        response = pb.MemoryResponse.FromString(data)
        if response.status:
            raise SpuError(_status_text(response.status))
        return response.region


def _status_text(status: bytes) -> str:
    """Return message and reason of a serialised status."""
    failure = status_pb2.Status.FromString(status)
    info = error_details_pb2.ErrorInfo()
    reason = info.reason if any(detail.Unpack(info) for detail in failure.details) else ""
    return f"{failure.message} ({reason})"
