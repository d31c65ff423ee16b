"""The board's end: answers requests, each carried out once however often it arrives. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod

from spu_server.board.framing import Deframer, make_frame
from spu_server.board.messages import MAX_DATA, VERSION, Kind, Request, Status


class RefusedAccess(Exception):
    """An access to what cannot be read or written.

    Args:
        status: the one in the answer to the host.
    """

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Memory(ABC):
    """The addresses that a host reads and writes."""

    @abstractmethod
    def read(self, address: int, length: int) -> bytes:
        """Bytes from `address` on, all of one instant; raises `RefusedAccess`."""

    @abstractmethod
    def write(self, address: int, data: bytes) -> None:
        """Take bytes in and act on them; raises `RefusedAccess`, and has then done nothing."""


class BoardEndpoint:
    """Bytes in, bytes out.

    A greeting with a new `link` begins a connection. After that each request must be the next one, or the last one once
    more, whose answer is then repeated. Anything else is a late copy, and is answered but not carried out.

    Args:
        memory: what is read and written.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._deframer = Deframer()
        self._link: int | None = None
        self._number = -1
        self._last = b""

    def receive(self, data: bytes) -> bytes:
        """Take in what has arrived: the bytes to send back."""
        return b"".join(self._reply(body) for body in self._deframer.receive(data))

    def _reply(self, body: bytes) -> bytes:
        request = Request.decode(body)
        if request is None:
            return b""
        if request.version != VERSION:
            return make_frame(request.answer(Status.BAD_VERSION))
        if request.kind == Kind.GREET and request.link != self._link and request.number == 0:
            self._link, self._number = request.link, -1
        if request.link == self._link and request.number == self._number:
            return self._last
        if request.link != self._link or request.number != self._number + 1:
            return make_frame(request.answer(Status.OUT_OF_ORDER))
        self._number = request.number
        self._last = make_frame(self._carry_out(request))
        return self._last

    def _carry_out(self, request: Request) -> bytes:
        try:
            if request.kind == Kind.GREET:
                return request.answer()
            if request.kind == Kind.READ:
                if not 1 <= request.length <= MAX_DATA:
                    raise RefusedAccess(Status.BAD_LENGTH)
                return request.answer(data=self._memory.read(request.address, request.length))
            if request.kind == Kind.WRITE:
                if not 1 <= len(request.data) <= MAX_DATA:
                    raise RefusedAccess(Status.BAD_LENGTH)
                self._memory.write(request.address, request.data)
                return request.answer()
            return request.answer(Status.UNKNOWN_KIND)
        except RefusedAccess as refused:
            return request.answer(refused.status)
