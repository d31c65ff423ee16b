"""What an address of a daemon looks like."""

from __future__ import annotations


def is_address(text: str) -> bool:
    """Whether this is ``unix:PATH`` or ``HOST:PORT`` with a port from 0 to 65535; hosts of IPv6 are in brackets."""
    if text.startswith("unix:"):
        return text != "unix:"
    host, _, port = text.rpartition(":")
    name = host.removeprefix("[").removesuffix("]")
    bare = name == host  # brackets are for colons
    return bool(name) and "/" not in name and not (bare and ":" in name) and port.isdecimal() and int(port) < 1 << 16
