"""Transports of bytes: TCP, or a serial line (also a pseudo-terminal)."""

from __future__ import annotations

import select
import socket
from abc import ABC, abstractmethod

import serial
from serial.tools.list_ports import comports

CONNECT_SECONDS = 5.0
"""Timeout of making a connection, in seconds."""

BAUD = 115200
"""Speed of a serial line, where the address names none."""


class Transport(ABC):
    """A byte stream to a board."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send all of it; raises OSError when the line is gone."""

    @abstractmethod
    def receive(self, seconds: float) -> bytes:
        """Bytes that are there within `seconds`, else none; raises OSError when the line is gone."""

    @abstractmethod
    def close(self) -> None:
        """Release the line."""


class Tcp(Transport):
    """A TCP connection."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def receive(self, seconds: float) -> bytes:
        """Bytes that are there within `seconds`, else none."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return b""
        data = self._socket.recv(4096)
        if not data:
            raise ConnectionResetError("the board has closed the connection")
        return data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Serial(Transport):
    """A serial line, 8N1, without flow control, held alone."""

    def __init__(self, path: str, baud: int) -> None:
        self._port = serial.Serial(path, baud, timeout=0, write_timeout=CONNECT_SECONDS, exclusive=True)
        self._port.reset_input_buffer()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._port.write(data)

    def receive(self, seconds: float) -> bytes:
        """Bytes that are there within `seconds`, else none."""
        self._port.timeout = seconds
        first = self._port.read(1)
        return first + self._port.read(self._port.in_waiting) if first else b""

    def close(self) -> None:
        """Close the line."""
        self._port.close()


def serial_addresses() -> list[str]:
    """Addresses of all serial lines of this machine, whatever is at their other ends."""
    return [f"serial:{port.device}" for port in comports()]


def connect(address: str) -> Transport:
    """Open ``tcp:HOST:PORT`` or ``serial:PATH[@BAUD]``.

    Raises:
        ValueError: for an address of another form.
        OSError: when nothing is there.
    """
    kind, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdecimal():
        return Tcp(host, int(port))
    path, _, baud = rest.partition("@")
    if kind == "serial" and path and (not baud or baud.isdecimal()):
        return Serial(path, int(baud or BAUD))
    raise ValueError(f"the board's address is {address!r}; expected tcp:HOST:PORT or serial:PATH[@BAUD]")
