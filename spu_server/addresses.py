"""Where the daemon may listen."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import grpc


class AddressError(ValueError):
    """An address that the daemon will not or cannot listen on."""

    remedy: ClassVar[str] = "choose another address, or stop the process that listens there; the message says which"


async def bind(server: grpc.aio.Server, addresses: Sequence[str], *, insecure_remote: bool) -> list[str]:
    """Bind the server to every address; the addresses as bound, with ports filled in.

    Unix sockets are open to their owner alone (mode 0600). TCP is for loopback addresses, unless `insecure_remote`.

    Raises:
        AddressError: when an address is remote, in use, or cannot be bound.
    """
    bound: list[str] = []
    try:
        for address in addresses:
            if address.startswith("unix:"):
                bound.append(await _bind_unix(server, address.removeprefix("unix:")))
            else:
                bound.append(await _bind_tcp(server, address, insecure_remote=insecure_remote))
    except BaseException:
        release(bound)
        raise
    return bound


def release(addresses: Sequence[str]) -> None:
    """Remove the Unix sockets of a server that has stopped."""
    for address in addresses:
        if address.startswith("unix:"):
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)


async def _bind_unix(server: grpc.aio.Server, path: str) -> str:
    if await _somebody_listens(path):
        raise AddressError(f"unix:{path} is in use by another process; choose another path or stop that process")
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise AddressError(f"cannot listen on unix:{path}: {error}") from error
    finally:
        os.umask(mask)
    return f"unix:{path}"


async def _somebody_listens(path: str) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), timeout=1.0)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except TimeoutError:
        return True  # it does not answer, but it is there
    except OSError as error:
        raise AddressError(f"cannot listen on unix:{path}: {error}") from error
    writer.close()
    return True


async def _bind_tcp(server: grpc.aio.Server, address: str, *, insecure_remote: bool) -> str:
    host, _, port = address.rpartition(":")
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AddressError(f"cannot listen on {address}: {error}") from error
    remote = sorted({str(info[4][0]) for info in infos if not ipaddress.ip_address(str(info[4][0])).is_loopback})
    if remote and not insecure_remote:
        raise AddressError(
            f"{address} can be reached from other machines ({', '.join(remote)}) and the link has no authentication; "
            "listen on 127.0.0.1 or a Unix socket, or pass --insecure-remote if the network keeps strangers out"
        )
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressError(f"cannot listen on {address}: {error}") from error
    return f"{host}:{bound}"
