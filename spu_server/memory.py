"""Memory that a driver's process can reach: filled by the daemon or by a client, gone with its last user."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from spu_server.descriptors import close, read_all, write_all
from spu_server.regions import Region


class SharedBytes:
    """An anonymous file in memory.

    It is written through the file, never mapped here, so that an upload is resident once: in the driver's process. The
    kernel frees it with the last descriptor and mapping, whoever is killed.

    Args:
        nbytes: size at first; memory is taken as it is written.
        name: by which the system's tools show it.
    """

    def __init__(self, nbytes: int, name: str = "spu-program") -> None:
        self.nbytes = nbytes
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        self._lost = weakref.finalize(self, os.close, self._descriptor)  # by whoever was cancelled, say
        os.ftruncate(self._descriptor, nbytes)

    def fileno(self) -> int:
        """The file's descriptor, to be passed on."""
        return self._descriptor

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`."""
        write_all(self._descriptor, data, offset)

    def read(self, buffer: memoryview) -> None:
        """Fill `buffer` from the beginning."""
        read_all(self._descriptor, buffer, 0)

    def clear(self) -> None:
        """Give all memory back."""
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Release the descriptor; mappings elsewhere live on."""
        if self._lost.detach():
            close(self._descriptor, self.nbytes)


@dataclass(frozen=True)
class Stretch:
    """Part of a region that a client shares; it stays so while the call that took it runs.

    Attributes:
        region: the region.
        offset: position of the first byte in it.
        nbytes: length.
    """

    region: Region
    offset: int
    nbytes: int

    def fileno(self) -> int:
        """The region's descriptor, to be passed on."""
        return self.region.descriptor

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Store `data` at `offset` from the stretch's beginning."""
        write_all(self.region.descriptor, data, self.offset + offset)


def pieces(payload: bytes | bytearray | memoryview | SharedBytes | Stretch, size: int) -> Iterator[bytes]:
    """Copies of a payload's bytes, `size` of them at a time."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        view = memoryview(payload)
        yield from (bytes(view[start : start + size]) for start in range(0, len(view), size))
        return
    begin = payload.offset if isinstance(payload, Stretch) else 0
    for start in range(0, payload.nbytes, size):
        buffer = bytearray(min(size, payload.nbytes - start))
        read_all(payload.fileno(), memoryview(buffer), begin + start)
        yield bytes(buffer)


Payload: TypeAlias = bytes | SharedBytes | Stretch
"""The bytes of a small upload, or where those of a large one lie."""
