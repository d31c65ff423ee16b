"""Memory that clients share with the daemon: who may use which, and until when."""

from __future__ import annotations

import itertools
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass

from spu_link.errors import CapacityExceeded, InvalidProgram, mismatch
from spu_server.descriptors import close

if sys.platform == "linux":
    import fcntl

MAX_REGIONS = 8
"""Maximum number of regions that one session has at a time."""


@dataclass(eq=False)
class Region:
    """One piece of shared memory: a sealed memfd, so its size cannot change.

    Attributes:
        number: its name; never used again.
        fencing: session that it belongs to.
        descriptor: this process's own.
        nbytes: size.
        uses: calls that use it now, and one more while it is registered.
    """

    number: int
    fencing: int
    descriptor: int
    nbytes: int
    uses: int = 1


class Regions:
    """The regions of all sessions.

    Unregistering takes a region out of the table at once; its memory is released with the last call that uses it.

    Args:
        max_bytes: max number of bytes of one region.

    Attributes:
        on_freed: called with the number of a region whose memory is released.
    """

    on_freed: Callable[[int], None] = staticmethod(lambda number: None)

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._table: dict[int, Region] = {}
        self._numbers = itertools.count(1)

    def register(self, fencing: int, descriptor: int) -> Region:
        """Take a client's memory in, and its descriptor over unless this raises.

        Raises:
            InvalidProgram: when it is not a memfd, not open for reading and writing, or not sealed as it must be.
            CapacityExceeded: when it is too large, or one too many.
        """
        nbytes = _sealed_size(descriptor)
        if nbytes > self._max_bytes:
            raise CapacityExceeded(
                f"a region of {nbytes} bytes is larger than the device takes",
                field="memory",
                found=nbytes,
                expected=f"at most {self._max_bytes} bytes",
            )
        held = sum(region.fencing == fencing for region in self._table.values())
        if held >= MAX_REGIONS:
            raise CapacityExceeded(
                f"the session has {held} regions already; unregister one first",
                field="memory",
                found=held,
                expected=f"at most {MAX_REGIONS} regions",
            )
        region = Region(next(self._numbers), fencing, descriptor, nbytes)
        self._table[region.number] = region
        return region

    def unregister(self, number: int) -> None:
        """Forget a region; one that is not there (any more) is no error."""
        if region := self._table.pop(number, None):
            self.release(region)

    def take(self, fencing: int, number: int) -> Region:
        """A region for a call of a session; to be followed by `release`.

        Raises:
            InvalidProgram: when the session has no such region.
        """
        region = self._table.get(number)
        if region is None or region.fencing != fencing:
            raise InvalidProgram(
                f"the session has no region {number}; register memory on this daemon's memory socket first",
                field="region",
                found=number,
                expected="a region of this session",
            )
        region.uses += 1
        return region

    def release(self, region: Region) -> None:
        """A use is over; with the last one goes the memory."""
        region.uses -= 1
        if region.uses == 0:
            self.on_freed(region.number)
            close(region.descriptor, region.nbytes)


def _sealed_size(descriptor: int) -> int:
    """Bytes of a memfd that nobody can resize."""
    status = os.fstat(descriptor)
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        raise mismatch("memory", f"a descriptor of type {stat.filemode(status.st_mode)[0]!r}", "a memfd") from None
    needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    if seals & ~_F_SEAL_EXEC != needed:
        raise mismatch("memory", f"sealed with {seals:#x}", f"{needed:#x}: F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL")
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise mismatch("memory", "open for one direction", "open for reading and writing")
    return status.st_size


_F_SEAL_EXEC = 0x20
"""fcntl.h; systems that forbid executable memory set it by themselves."""
