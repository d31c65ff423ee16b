"""Memory that a driver's process can map: filled by the daemon, gone with its last user."""

from __future__ import annotations

import os
import tempfile
import threading


class SharedBytes:
    """An anonymous file in memory.

    It is written through the file, never mapped here, so that an upload is resident once: in the driver's process. The
    kernel frees it with the last descriptor and mapping, whoever is killed.

    Args:
        nbytes: size, fixed.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("spu-program", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        os.ftruncate(self._descriptor, nbytes)

    def fileno(self) -> int:
        """The file's descriptor, to be passed on."""
        return self._descriptor

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def close(self) -> None:
        """Let go of the descriptor; mappings elsewhere live on.

        Where there are none, the kernel frees the memory at 10 GB a second; a thread waits for that, not the caller.
        """
        threading.Thread(target=os.close, args=(self._descriptor,), name="free-upload").start()

    def __enter__(self) -> SharedBytes:
        """The memory itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Let go."""
        self.close()
