"""Leave the client of a parent alone in a forked child, which makes its own.

Only the forking thread lives on in the child: neither the client's event loop nor gRPC's threads do. What they held
shares sockets with the parent, so the child neither uses nor destroys it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

from spu_link.errors import WrongProcess

GRPC = "grpc._cython.cygrpc"
"""The module that is gRPC's core; a second copy of its file has threads and state of its own."""

USERS = (
    "grpc",
    "grpc_status",
    "host_client.links.remote",
    "host_client.links.responses",
    "host_client.links.state",
    "host_client.links.upload",
    "spu_link.status",
    "tngd.spu.v1.spu_pb2_grpc",
)
"""Modules, and packages, that refer to gRPC and are loaded anew with it."""

if GRPC not in sys.modules:
    # Its handlers of forks give up, with a line on standard error, as soon as an asynchronous channel has been used.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_used = False  # whether this process, or one that it was forked from, has used the client
_inherited = False  # whether one that it was forked from has
_owned: weakref.WeakSet[Owned] = weakref.WeakSet()


class Owned:
    """Base class of what belongs to the process that made it."""

    _process: int

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Note the process."""
        global _used
        _used = True
        self = super().__new__(cls)
        self._process = os.getpid()
        _owned.add(self)
        return self

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child of the one that made it."""
        return self._process != os.getpid()

    def check_process(self) -> None:
        """Refuse to be used in a forked child.

        Raises:
            WrongProcess: saying what to do there.
        """
        if self.inherited:
            raise WrongProcess(
                f"this {type(self).__name__} belongs to process {self._process}, and this is process {os.getpid()}, "
                "forked from it; call connect() here and open a session of your own, which has the device when no "
                "other session holds it",
                field="process",
                found=os.getpid(),
                expected=str(self._process),
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be copied, or sent to another process.

        Raises:
            TypeError: saying what to do instead.
        """
        raise TypeError(
            f"a {type(self).__name__} belongs to the process that made it and cannot be copied or pickled; call "
            "connect() where it is needed, such as in the worker"
        )


def leave_alone(things: Iterable[object]) -> None:
    """Keep the parent's things for as long as this child lives: to destroy them would close the parent's sockets."""
    for one in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def leave_loop_alone(loop: asyncio.AbstractEventLoop) -> None:
    """Keep an event loop of the parent and its tasks; its selector is shared with the parent."""
    leave_alone([loop, *asyncio.all_tasks(loop)])


def renew_grpc() -> None:
    """Load gRPC anew if the parent of this process has used it. Call it before a channel is made.

    Raises:
        WrongProcess: where it cannot be loaded twice.
    """
    if _inherited:
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
    leave_alone(old.values())
    try:
        assert file is not None
        with _copied(file) as path:
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
def _copied(path: str) -> Iterator[str]:
    """Copy a file into memory, for as long as the block; the loader of libraries tells files apart by their inode."""
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


def _forked() -> None:
    global _inherited
    _inherited = _used
    if _used:
        leave_alone(list(_owned))
        gc.freeze()  # garbage may hold gRPC's last channel, the end of which would wait for a thread of the parent


os.register_at_fork(after_in_child=_forked)
