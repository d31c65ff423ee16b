"""Uploads that do not arrive as they were sent."""

from __future__ import annotations

import threading

from spu_link.errors import ProtocolError, UploadCorrupt
from tests.system.bad_input.programs import program
from tests.system.raw import SECONDS, encoded
from tngd.spu.v1 import spu_pb2 as pb


def flipped(parts):
    data = bytearray(parts[2].chunk.data)
    data[10] ^= 1
    parts[2].chunk.data = bytes(data)
    return parts


def with_offset(parts, offset):
    parts[2].chunk.offset = offset
    return parts


def wrong_checksum(parts):
    parts[-1].trailer.crc32c ^= 1
    return parts


def extra(parts):
    end = parts[-2].chunk.offset + len(parts[-2].chunk.data)
    return [*parts[:-1], pb.ProgramRequest(chunk=pb.Chunk(offset=end, data=b"x")), parts[-1]]


UPLOADS = {
    "a flipped byte": (flipped, UploadCorrupt, "crc32c"),
    "a wrong checksum": (wrong_checksum, UploadCorrupt, "crc32c"),
    "a chunk too early": (lambda parts: with_offset(parts, 0), UploadCorrupt, "chunk.offset"),
    "a chunk too late": (lambda parts: with_offset(parts, 128), UploadCorrupt, "chunk.offset"),
    "a chunk at the end of 64 bits": (lambda parts: with_offset(parts, 2**64 - 1), UploadCorrupt, "chunk.offset"),
    "a chunk that comes twice": (lambda parts: [*parts[:2], *parts[1:]], UploadCorrupt, "chunk.offset"),
    "a chunk left out": (lambda parts: [*parts[:1], *parts[2:]], UploadCorrupt, "chunk.offset"),
    "a byte too many": (extra, UploadCorrupt, "announced"),
    "an end before the last chunk": (lambda parts: [*parts[:-2], parts[-1]], UploadCorrupt, "announced"),
    "no chunk at all": (lambda parts: [parts[0], parts[-1]], UploadCorrupt, "announced"),
    "no trailer": (lambda parts: parts[:-1], UploadCorrupt, "ended"),
    "a header and no more": (lambda parts: parts[:1], UploadCorrupt, "ended"),
    "nothing": (lambda parts: [], UploadCorrupt, "ended"),
    "a header twice": (lambda parts: [parts[0], *parts], ProtocolError, "header"),
    "a chunk before the header": (lambda parts: [parts[1], *parts], ProtocolError, "chunk"),
    "a trailer before the header": (lambda parts: parts[::-1], ProtocolError, "trailer"),
    "an empty message first": (lambda parts: [pb.ProgramRequest(), *parts], ProtocolError, "nothing"),
    "an empty message in the middle": (
        lambda parts: [*parts[:2], pb.ProgramRequest(), *parts[2:]],
        ProtocolError,
        "nothing",
    ),
}


class Silence:
    """Sends the first messages of an upload, and then waits until it is to end."""

    def __init__(self, parts, seconds=SECONDS):
        self.parts = parts
        self.over = threading.Event()
        self.seconds = seconds

    def __iter__(self):
        yield from self.parts
        self.over.wait(self.seconds)


def begun(raw):
    """The first half of an upload."""
    return raw.messages(*encoded(program()))[:4]
