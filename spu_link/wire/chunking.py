"""A run of bytes in chunks, and back, verified by a CRC-32C over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import google_crc32c

from spu_link.errors import UploadCorrupt
from tngd.spu.v1 import spu_pb2 as pb

CHUNK_BYTES = 1 << 18
"""Bytes of a chunk sent from here: smaller ones cost more calls, larger ones let sender and receiver wait in turn."""

MAX_CHUNK_BYTES = 1 << 20
"""Maximum number of bytes of a chunk that is accepted."""


def chunks(views: Iterable[memoryview], size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """One run of bytes over several views, in chunks of `size` (the last one shorter)."""
    pending: list[memoryview] = []
    room = size
    for view in views:
        start = 0
        while start < len(view):
            piece = view[start : start + room]
            pending.append(piece)
            start += len(piece)
            room -= len(piece)
            if room == 0:
                yield b"".join(pending)
                pending, room = [], size
    if pending:
        yield b"".join(pending)


def numbered(data: Iterable[bytes]) -> Iterator[pb.Chunk]:
    """Chunk messages of consecutive bytes."""
    offset = 0
    for piece in data:
        yield pb.Chunk(offset=offset, data=piece)
        offset += len(piece)


def writer(buffer: bytearray) -> Callable[[int, bytes], None]:
    """Return a function that stores bytes in a buffer of this process."""

    def write(offset: int, data: bytes) -> None:
        buffer[offset : offset + len(data)] = data

    return write


class Assembler:
    """Puts chunks in their place, and verifies them.

    Args:
        nbytes: announced size of the whole.
        write: stores bytes at an offset.

    Attributes:
        nbytes: the same; may be made smaller before `finish`, when the size turns out.
    """

    def __init__(self, nbytes: int, write: Callable[[int, bytes], object]) -> None:
        self.nbytes = nbytes
        self._write = write
        self._filled = 0
        self._crc = 0

    def add(self, chunk: pb.Chunk) -> None:
        """Store one chunk.

        Raises:
            UploadCorrupt: when it does not follow the last one, or runs over the end.
        """
        data = chunk.data
        end = self._filled + len(data)
        if len(data) > MAX_CHUNK_BYTES:
            raise self._corrupt("chunk.data", f"{len(data)} bytes", f"at most {MAX_CHUNK_BYTES} in one chunk")
        if chunk.offset != self._filled:
            raise self._corrupt("chunk.offset", chunk.offset, f"{self._filled}, the end of the chunk before")
        if end > self.nbytes:
            raise self._corrupt("chunk.data", f"{end} bytes", f"{self.nbytes} announced in the header")
        self._write(self._filled, data)
        self._filled = end
        self._crc = google_crc32c.extend(self._crc, data)

    def finish(self, crc32c: int) -> None:
        """Verify the whole.

        Raises:
            UploadCorrupt: when bytes are missing or the checksum differs.
        """
        if self._filled != self.nbytes:
            raise self._corrupt("chunk", f"{self._filled} bytes", f"{self.nbytes} announced in the header")
        if self._crc != crc32c:
            raise self._corrupt("crc32c", f"{self._crc:#010x} over the bytes received", f"{crc32c:#010x}")

    @staticmethod
    def _corrupt(field: str, found: object, expected: str) -> UploadCorrupt:
        return UploadCorrupt(
            f"{field} is {found}, expected {expected}; nothing has changed, send again",
            field=field,
            found=found,
            expected=expected,
        )
