"""Addresses of daemons: ``unix:PATH`` and ``HOST:PORT``."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import quote

SOCKET_PATH_BYTES = 107
"""Max length of a Unix socket's path."""


def is_address(text: str) -> bool:
    """Return whether this is ``unix:PATH`` or ``HOST:PORT`` with a port from 0 to 65535; IPv6 hosts are in brackets."""
    if text.startswith("unix:"):
        return text != "unix:"
    host, _, port = text.rpartition(":")
    name = host.removeprefix("[").removesuffix("]")
    bare = name == host  # brackets are for colons
    return (
        bool(name)
        and "/" not in name
        and not (bare and ":" in name)
        and port.isascii()
        and port.isdecimal()
        and int(port) < 1 << 16
    )


def socket_path(address: str) -> str | None:
    """Return PATH of ``unix:PATH``, exactly as it was given; None of an address of another kind."""
    return address.removeprefix("unix:") if address.startswith("unix:") else None


def path_fault(path: str) -> str:
    """Return why no Unix socket can have this path, in words that go on "the path …"; empty if one can."""
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if "\0" in path:
        return "contains a NUL character"
    if length > SOCKET_PATH_BYTES:
        return f"has {length} bytes; a Unix socket's path has at most {SOCKET_PATH_BYTES}"
    return ""


def channel_target(address: str) -> str:
    """Return the address as gRPC reads it: a URI, in which it decodes %20 and stops at # and ?."""
    path = socket_path(address)
    if path is None:
        return address
    root = "/" if path.startswith("/") else ""  # two slashes would begin a host
    return f"unix:{root}{quote(path.lstrip('/') if root else path)}"


def channel_options(address: str) -> Sequence[tuple[str, int]]:
    """Return options for a gRPC channel: a connection within this machine goes through no proxy."""
    return [("grpc.enable_http_proxy", 0)] if is_local(address) else []


def is_local(address: str) -> bool:
    """Return whether the address is a Unix socket, or a host that is this machine by its very name or number."""
    if socket_path(address) is not None:
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:  # numbers in every form that a connection takes, 127.1 too; names are not looked up
        infos = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return all(_is_loopback(str(info[4][0])) for info in infos)


def _is_loopback(number: str) -> bool:
    ip = ipaddress.ip_address(number.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified
