"""The addresses that the daemon listens on."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc

from spu_link.addresses import channel_target, socket_path
from spu_server.socket_files import AddressError, SocketFile, SocketLock, keep


@dataclass(frozen=True)
class _Place:
    """A Unix socket of the daemon, and the lock that goes with it."""

    file: SocketFile
    lock: SocketLock


class Endpoints:
    """The addresses of a daemon, and the gRPC servers behind them.

    Usually there is one server. A Unix socket whose file has been removed, by a cleaner of temporary files for
    instance, is recreated with a separate server; connections to the former one go on.

    Attributes:
        addresses: as bound, with ports filled in.
    """

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._servers = [_new_server()]
        self._places: list[_Place] = []
        self._watching: list[asyncio.Task[NoReturn]] = []

    async def bind(self, addresses: Sequence[str], *, insecure_remote: bool) -> None:
        """Bind every address. Connections wait until `start`.

        Unix sockets are open to their owner alone (mode 0600). TCP is for loopback addresses, unless `insecure_remote`.

        Raises:
            AddressError: when an address is remote, in use, or cannot be bound.
        """
        try:
            for address in addresses:
                path = socket_path(address)
                if path is None:
                    self.addresses.append(await _bind_tcp(self._servers[0], address, insecure_remote=insecure_remote))
                else:
                    self._bind_unix(path)
                    self.addresses.append(address)
        except BaseException:
            self.withdraw()
            raise

    async def start(self, register: Callable[[grpc.aio.Server], None]) -> None:
        """Answer calls.

        Args:
            register: adds the services to a server.
        """
        register(self._servers[0])
        await self._servers[0].start()
        unused: list[grpc.aio.Server] = []  # a server of an attempt that failed, for the next one

        async def again(place: _Place) -> None:
            place.lock.renew()
            if not unused:
                unused.append(_new_server())
                register(unused[0])
            place.file.make(_listen_of(unused[0]))
            server = unused.pop()
            try:
                await server.start()
            except BaseException:
                place.file.remove()  # nobody accepts, and it is recreated only while it is missing
                raise
            self._servers.append(server)

        for place in self._places:
            self._watching.append(asyncio.create_task(keep(place.file, partial(again, place))))

    def withdraw(self) -> None:
        """Remove the Unix sockets, so that another daemon may have their paths."""
        for watching in self._watching:
            watching.cancel()
        for place in self._places:
            place.file.remove()
            place.lock.release()
        self._places.clear()

    async def stop(self, grace: float) -> None:
        """Take no more calls, and end those under way after `grace` seconds."""
        self.withdraw()
        await asyncio.gather(*(server.stop(grace) for server in self._servers))

    def _bind_unix(self, path: str) -> None:
        file = SocketFile(path)
        lock = SocketLock(path)
        try:
            file.make(_listen_of(self._servers[0]))
        except BaseException:
            lock.release()
            raise
        self._places.append(_Place(file, lock))


def _new_server() -> grpc.aio.Server:
    # Without SO_REUSEPORT a second daemon on the same port fails, instead of sharing its calls.
    return grpc.aio.server(options=[("grpc.so_reuseport", 0)])


def _listen_of(server: grpc.aio.Server) -> Callable[[str], None]:
    """Return a function that lets a server listen on a Unix socket of the name that it gets."""

    def listen(name: str) -> None:
        try:
            server.add_insecure_port(channel_target(f"unix:{name}"))
        except RuntimeError:
            raise _reason(socket.AF_UNIX, name) from None

    return listen


async def _bind_tcp(server: grpc.aio.Server, address: str, *, insecure_remote: bool) -> str:
    host, _, port = address.rpartition(":")
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"cannot listen on {address}: {_words(error)}") from None
    remote = sorted({str(info[4][0]) for info in infos if not ipaddress.ip_address(str(info[4][0])).is_loopback})
    if remote and not insecure_remote:
        raise AddressError(
            f"{address} can be reached from other machines ({', '.join(remote)}) and the link has no authentication; "
            "listen on 127.0.0.1 or a Unix socket, or pass --insecure-remote if the network keeps strangers out"
        )
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        family, _, _, _, sockaddr = infos[0]
        reason = _words(_reason(family, sockaddr))
        raise AddressError(f"cannot listen on {address}: {reason}; choose another address") from None
    return f"{host}:{bound}"


def _reason(family: socket.AddressFamily, address: Any) -> OSError:
    """Return the system's error for an attempt to bind an address: gRPC does not report it."""
    try:
        with socket.socket(family) as attempt:
            attempt.bind(address)
    except OSError as error:
        return error
    finally:
        if family == socket.AF_UNIX and os.path.lexists(address):
            os.unlink(address)
    return OSError("the system gives no reason")


def _words(error: OSError | UnicodeError) -> str:
    """Return an error of the system without its number."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
