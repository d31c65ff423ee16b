"""Leave the client of a parent alone in a forked child, which makes its own.

Only the forking thread lives on in the child: neither the client's event loop nor gRPC's threads do. What they held
shares sockets with the parent, so the child neither uses nor destroys it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import weakref
from collections.abc import Iterable
from typing import Any, Self

import torch

from spu_link.errors import WrongProcess

_used = False  # whether this process, or one that it was forked from, has used the client
parent_used = False  # whether one that it was forked from has
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
        """True if this process is a forked child of the one that made it."""
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
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def leave_loop_alone(loop: asyncio.AbstractEventLoop) -> None:
    """Keep an event loop of the parent and its tasks; its selector is shared with the parent."""
    leave_alone([loop, *asyncio.all_tasks(loop)])


def _after_fork() -> None:
    global parent_used
    parent_used = _used
    if _used:
        leave_alone(list(_owned))
        torch.set_num_threads(1)  # OpenMP would wait for threads of the parent; torch's own workers do the same
        gc.freeze()  # garbage may hold gRPC's last channel, the end of which would wait for a thread of the parent


os.register_at_fork(after_in_child=_after_fork)
