"""Memory files through their descriptors; never mapped here, so that nothing others do to them hurts this process."""

from __future__ import annotations

import os
import threading

INLINE_BYTES = 1 << 23
"""Memory up to this size is freed at once, in less than 1 ms."""


def close(descriptor: int, nbytes: int) -> None:
    """Close a memory file.

    If this was its last user, the kernel frees the memory at 10 GB a second; a thread waits for what takes longer than
    its own start, not the caller.
    """
    if nbytes <= INLINE_BYTES:
        os.close(descriptor)
    else:
        threading.Thread(target=os.close, args=(descriptor,), name="free-memory").start()


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; one call of the system moves at most 2 GiB."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def read_all(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from `offset` on.

    Raises:
        EOFError: when the file ends before.
    """
    while buffer:
        read = os.preadv(descriptor, [buffer], offset)
        if read == 0:
            raise EOFError(f"the memory ends {len(buffer)} bytes early")
        buffer, offset = buffer[read:], offset + read
