"""The memory socket: clients on this machine register memory that they share with the daemon.

Packets of a Unix socket keep their boundaries and carry descriptors; gRPC can do neither.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

import structlog
from google.protobuf.message import DecodeError

from spu_link.errors import ProtocolError, SpuError
from spu_link.status import to_status
from spu_server.regions import Regions
from spu_server.services.incoming import key_of
from spu_server.sessions import SessionKey, Sessions
from spu_server.socket_files import SocketFile, as_address_error, keep
from tngd.spu.v1 import spu_pb2 as pb

log = structlog.get_logger(__name__)

PACKET_BYTES = 4096
"""Longest request."""

SILENCE_SECONDS = 5.0
"""Longest silence of a client that has not registered anything."""

WATCH_SECONDS = 1.0
"""Seconds between two looks at whether the session of a silent client lives."""

MAX_CONNECTIONS = 64
"""Maximum number of clients at a time."""


def is_supported() -> bool:
    """Return whether this system has what is needed: sealed memory files, and packets on Unix sockets."""
    return hasattr(os, "memfd_create") and hasattr(socket, "SOCK_SEQPACKET") and hasattr(socket, "MSG_CMSG_CLOEXEC")


class MemoryService:
    """Listens next to a gRPC server's Unix socket, for its owner alone.

    Args:
        path: of the socket. The caller holds the lock of the gRPC server's socket, and with it the right to this one.
        sessions: who may.
        regions: the table.

    Raises:
        AddressError: when the path cannot be listened on.
    """

    def __init__(self, path: str, sessions: Sessions, regions: Regions) -> None:
        self.path = path
        self._sessions = sessions
        self._regions = regions
        self._talks: set[asyncio.Task[None]] = set()
        self._file = SocketFile(path)
        self._accepting = self._listen()
        self._watching = asyncio.create_task(keep(self._file, self._listen_again))

    def withdraw(self) -> None:
        """Remove the socket, so that another daemon may have its path; clients that are connected stay."""
        self._watching.cancel()
        self._file.remove()

    async def close(self) -> None:
        """Stop; what clients have registered is forgotten."""
        self.withdraw()
        tasks = [self._accepting, *self._talks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _listen(self) -> asyncio.Task[None]:
        """Make the socket and accept clients on it."""
        with as_address_error(self.path):
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def listen(name: str) -> None:
            listening.bind(name)
            listening.listen(MAX_CONNECTIONS)
            listening.setblocking(False)

        try:
            self._file.make(listen)
        except BaseException:
            listening.close()
            raise
        accepting = asyncio.create_task(self._accept(listening))
        accepting.add_done_callback(lambda _: listening.close())
        return accepting

    async def _listen_again(self) -> None:
        before, self._accepting = self._accepting, self._listen()
        before.cancel()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:  # out of descriptors, for instance: others may be closed meanwhile
                log.warning("memory socket cannot accept", why=str(error))
                await asyncio.sleep(WATCH_SECONDS)
                continue
            if len(self._talks) >= MAX_CONNECTIONS:
                connection.close()
                continue
            talk = loop.create_task(self._talk(connection))
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)

    async def _talk(self, connection: socket.socket) -> None:
        """Serve one client until it leaves, its session ends, or it breaks the rules."""
        connection.setblocking(False)
        registered: dict[int, SessionKey] = {}
        begin = asyncio.get_running_loop().time()
        try:
            while True:
                while not await _readable(connection, WATCH_SECONDS):
                    if registered and not any(self._sessions.lives(key) for key in registered.values()):
                        return
                    if not registered and asyncio.get_running_loop().time() - begin > SILENCE_SECONDS:
                        log.info("a client of the memory socket said nothing", seconds=SILENCE_SECONDS)
                        return
                packet = _receive(connection)
                if packet is None:
                    return
                connection.send(self._answer(*packet, registered).SerializeToString())
        except ProtocolError as error:
            log.info("refused", reason=error.reason(), why=error.message)
            _send_last(connection, _failure(error))
        except OSError as error:  # the client is gone, or does not read its answers
            log.info("a client of the memory socket is gone", why=str(error))
        finally:
            connection.close()
            for number in registered:
                self._regions.unregister(number)

    def _answer(
        self, request: pb.MemoryRequest, descriptors: list[int], registered: dict[int, SessionKey]
    ) -> pb.MemoryResponse:
        try:
            key = key_of(request.session)
            self._sessions.check(key)
            if request.WhichOneof("action") == "unregister":
                number = request.unregister.region
                if registered.pop(number, None):
                    self._regions.unregister(number)
                return pb.MemoryResponse(region=number)
            if len(descriptors) != 1:
                raise ProtocolError(
                    f"a registration carries {len(descriptors)} descriptors; it needs one",
                    field="descriptor",
                    found=len(descriptors),
                    expected="one memfd",
                )
            region = self._regions.register(key.fencing, descriptors[0])
            descriptors.clear()
            registered[region.number] = key
            log.debug("region registered", region=region.number, nbytes=region.nbytes)
            return pb.MemoryResponse(region=region.number)
        except ProtocolError:
            raise
        except SpuError as error:
            log.info("refused", reason=error.reason(), why=error.message)
            return _failure(error)
        finally:
            _close(descriptors)


async def _readable(connection: socket.socket, seconds: float) -> bool:
    """Wait until there is something to receive; whether there is."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(connection, came.set)
    try:
        async with asyncio.timeout(seconds):
            await came.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(connection)
    return True


def _receive(connection: socket.socket) -> tuple[pb.MemoryRequest, list[int]] | None:
    """One request with its descriptors; None when the client has left.

    Raises:
        ProtocolError: when it is not a request.
    """
    data, descriptors, flags, _ = socket.recv_fds(connection, PACKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    if not data and not descriptors:
        return None
    try:
        request = pb.MemoryRequest.FromString(data)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or request.WhichOneof("action") is None:
            raise DecodeError
    except DecodeError:
        _close(descriptors)
        raise ProtocolError(
            f"a packet of {len(data)} bytes is not a MemoryRequest with at most one descriptor",
            field="packet",
            found=data[:32].hex(),
            expected="a MemoryRequest",
        ) from None
    return request, descriptors


def _failure(error: SpuError) -> pb.MemoryResponse:
    return pb.MemoryResponse(status=to_status(error).SerializeToString())


def _send_last(connection: socket.socket, response: pb.MemoryResponse) -> None:
    try:
        connection.send(response.SerializeToString())
    except OSError as error:
        log.debug("a client of the memory socket is gone", why=str(error))


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
