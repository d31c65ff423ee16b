"""The contents of frames: a host greets, reads and writes; a board answers each request once.

A request's body is ``version u8, kind u8, link u32, number u32`` and then, little-endian as everything:

    greet   —                                       answered with version and kind alone
    read    address u16, length u16                 answered with the bytes
    write   address u16, bytes                      answered with nothing

An answer repeats the request's first ten bytes with the highest bit of `kind` set, then a status u8 and its data. The
host draws `link` at random when it connects and counts `number` up from 0, one request open at a time. So an answer
belongs to a request if and only if the two agree in all of version, kind, link and number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

VERSION = 1
"""Of the messages; what lies behind the addresses has a version of its own, a register."""

MAX_DATA = 1024
"""Maximum number of bytes of a block that is read or written."""

ANSWER = 0x80
"""Bit of `kind` in an answer."""

_HEADER = struct.Struct("<BBII")
_RANGE = struct.Struct("<HH")
_ADDRESS = struct.Struct("<H")


class Kind(IntEnum):
    """Kind of a request."""

    GREET = 1
    READ = 2
    WRITE = 3


class Status(IntEnum):
    """Outcome of a request."""

    OK = 0
    UNKNOWN_KIND = 1
    BAD_ADDRESS = 2
    BAD_LENGTH = 3
    READ_ONLY = 4
    REFUSED = 5
    OUT_OF_ORDER = 6
    BAD_VERSION = 7


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        kind: what is asked for.
        link: the connection, drawn at random by the host.
        number: counts the requests of the connection, from 0.
        address: of the first byte; for read and write.
        data: for write; 1 to `MAX_DATA` bytes.
        length: for read; 1 to `MAX_DATA`.
        version: of the messages.
    """

    kind: int
    link: int
    number: int
    address: int = 0
    data: bytes = b""
    length: int = 0
    version: int = VERSION

    def encode(self) -> bytes:
        """The body of its frame."""
        head = _HEADER.pack(self.version, self.kind, self.link, self.number)
        if self.kind == Kind.READ:
            return head + _RANGE.pack(self.address, self.length)
        return head + (_ADDRESS.pack(self.address) + self.data if self.kind == Kind.WRITE else b"")

    @classmethod
    def decode(cls, body: bytes) -> Request | None:
        """The request in a body; None if it is none, for instance an answer or one of wrong length."""
        if len(body) < _HEADER.size:
            return None
        version, kind, link, number = _HEADER.unpack_from(body)
        rest = body[_HEADER.size :]
        if kind & ANSWER:
            return None
        if kind == Kind.READ:
            if len(rest) != _RANGE.size:
                return None
            address, length = _RANGE.unpack(rest)
            return cls(kind, link, number, address, length=length, version=version)
        if kind == Kind.WRITE:
            if len(rest) < _ADDRESS.size:
                return None
            (address,) = _ADDRESS.unpack_from(rest)
            return cls(kind, link, number, address, rest[_ADDRESS.size :], version=version)
        return cls(kind, link, number, version=version)

    def answer(self, status: int = Status.OK, data: bytes = b"") -> bytes:
        """The body of the answer."""
        return _HEADER.pack(self.version, self.kind | ANSWER, self.link, self.number) + bytes([status]) + data


@dataclass(frozen=True)
class Answer:
    """Answer to a request.

    Attributes:
        status: how it went.
        data: what a read read.
    """

    status: int
    data: bytes

    @classmethod
    def decode(cls, body: bytes, request: Request) -> Answer | None:
        """The answer to `request` in a body; None if it is not that."""
        head = _HEADER.pack(request.version, request.kind | ANSWER, request.link, request.number)
        if len(body) <= len(head) or body[: len(head)] != head:
            return None
        answer = cls(body[len(head)], body[len(head) + 1 :])
        wanted = request.length if request.kind == Kind.READ and answer.status == Status.OK else 0
        return answer if len(answer.data) == wanted else None
