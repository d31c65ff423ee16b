"""Load gRPC anew in a forked child, where its threads do not live on."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from host_client import ownership
from spu_link.errors import WrongProcess

GRPC = "grpc._cython.cygrpc"
"""The module that is gRPC's core; a second copy of its file has threads and state of its own."""

USERS = (
    "grpc",
    "grpc_status",
    "host_client.links.remote",
    "host_client.links.remote_calls",
    "spu_link.status",
    "tngd.spu.v1.spu_pb2_grpc",
)
"""Modules, and packages, that refer to gRPC and are loaded anew with it."""

if GRPC not in sys.modules:
    # Its handlers of forks give up, with a line on standard error, as soon as an asynchronous channel has been used.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def renew_grpc() -> None:
    """Load gRPC anew if the parent of this process has used it. Call it before a channel is made.

    Raises:
        WrongProcess: where it cannot be loaded twice.
    """
    if ownership.parent_used:
        _load_again(os.getpid())


@cache
def _load_again(process: int) -> None:
    """Once in each process."""
    if GRPC not in sys.modules:
        return
    file = sys.modules[GRPC].__file__
    old = {
        name: module
        for name, module in sys.modules.items()
        if any(name == user or name.startswith(f"{user}.") for user in USERS)
    }
    ownership.leave_alone(old.values())
    try:
        assert file is not None
        with _copy_to_memory(file) as path:
            for name in old:
                del sys.modules[name]
            finder = _Copy(path)
            sys.meta_path.insert(0, finder)
            try:
                importlib.import_module(GRPC).__file__ = file
            finally:
                sys.meta_path.remove(finder)
    except (OSError, AttributeError, ImportError) as error:
        sys.modules.update(old)
        raise WrongProcess(
            f"this process was forked from one that has used a daemon, and gRPC cannot be loaded again here ({error}); "
            "start it with the method 'spawn' or 'forkserver', or use connect('inproc:')",
            field="process",
            found=process,
        ) from error


@contextmanager
def _copy_to_memory(path: str) -> Iterator[str]:
    """Copy a file into memory, for as long as the block; the loader of libraries distinguishes files by their inode."""
    target = os.memfd_create("grpc")
    try:
        with open(path, "rb") as source:
            while os.sendfile(target, source.fileno(), None, 1 << 30):
                pass
        yield f"/proc/{os.getpid()}/fd/{target}"
    finally:
        os.close(target)


class _Copy(importlib.abc.MetaPathFinder):
    """Finds gRPC's core in another file than usual."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != GRPC:
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, self._path)
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)
