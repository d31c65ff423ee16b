"""Registers over a transport: the host's end with its waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from spu_server.board.host import Host, LinkFailed
from spu_server.board.messages import MAX_DATA, Answer, Kind, Status
from spu_server.board.registers import Register, span, unpack
from spu_server.board.transports import Transport

ANNOUNCE_SECONDS = 0.25
"""Min time between two announcements, in seconds."""


class RegisterLink:
    """Reads and writes registers; every call returns what the board has confirmed, or raises.

    Args:
        transport: the byte stream; closed with this.
        host: what keeps count.

    Attributes:
        host: what keeps count, with its counters.
        last: monotonic seconds before and after the last request: the board's answer was made in between.
        announce: called, four times a second at most, with the seconds that the request that begins may take.
    """

    def __init__(self, transport: Transport, host: Host | None = None) -> None:
        self.host = host or Host()
        self.last = (0.0, 0.0)
        self.announce: Callable[[float], None] = lambda seconds: None
        self._announced = -math.inf
        self._transport = transport

    def greet(self) -> None:
        """Begin the connection.

        Raises:
            LinkFailed: when nothing answers.
        """
        self._request(Kind.GREET)

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes from `address` on, at most `MAX_DATA` of them, of one instant."""
        return self._request(Kind.READ, address=address, length=length).data

    def write(self, address: int, data: bytes) -> None:
        """Write bytes; at one instant if there are at most `MAX_DATA`, else block by block."""
        for begin in range(0, len(data), MAX_DATA):
            self._request(Kind.WRITE, address=address + begin, data=data[begin : begin + MAX_DATA])

    def registers(self, registers: tuple[Register, ...]) -> dict[Register, float]:
        """Values of registers that lie together, of one instant."""
        return unpack(registers, self.read(*span(registers)))

    def set(self, register: Register, value: float) -> None:
        """Write one register."""
        self.write(register.address, register.pack(value))

    def close(self) -> None:
        """Release the line."""
        self._transport.close()

    def _request(self, kind: Kind, *, address: int = 0, data: bytes = b"", length: int = 0) -> Answer:
        begun = time.monotonic()
        if begun - self._announced > ANNOUNCE_SECONDS:
            self._announced = begun
            self.announce(self.host.longest)
        try:
            self._transport.send(self.host.ask(kind, begun, address=address, data=data, length=length))
            while True:
                left = self.host.seconds_left(time.monotonic())
                answer = self.host.receive(self._transport.receive(left))
                if answer is not None:
                    break
                if self.host.seconds_left(time.monotonic()) == 0.0:
                    self._transport.send(self.host.remind(time.monotonic()))
        except LinkFailed:
            raise
        except OSError as error:
            raise LinkFailed(f"the line to the board broke: {error}") from error
        self.last = (begun, time.monotonic())
        if answer.status != Status.OK:
            name = Status(answer.status).name if answer.status in set(Status) else str(answer.status)
            raise LinkFailed(
                f"the board answered {name} to {kind.name.lower()} at {address:#06x}; "
                + (
                    "it has been restarted, or someone else speaks with it"
                    if answer.status == Status.OUT_OF_ORDER
                    else f"{length or len(data)} bytes"
                )
            )
        return answer
