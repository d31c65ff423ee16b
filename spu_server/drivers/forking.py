"""Where drivers' processes come from: forks of one process that has loaded what they need, and done nothing else.

It loads while the daemon does, so that a driver is there as soon as the daemon; and a driver that is started again is
there at once.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

_context = multiprocessing.get_context("forkserver")


def begin_loading() -> None:
    """Start the process, unless it runs already. This returns at once."""
    _context.set_forkserver_preload(["spu_server.drivers.hosted"])
    forkserver.ensure_running()


def started(target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> BaseProcess:
    """Return a process that has been started with a function to run; it ends with this one."""
    try:
        process: BaseProcess = _context.Process(target=target, args=arguments, name=name, daemon=True)
        process.start()
    except OSError:  # the file of its socket, in the folder for temporary ones, has been removed
        process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, name=name, daemon=True)
        process.start()
    return process
