"""Processes of drivers: forks of one process, the fork server, that has imported what they need and done nothing else.

It imports while the daemon does, so that a driver is ready as soon as the daemon, and a restarted driver at once.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

_context = multiprocessing.get_context("forkserver")


def begin_loading() -> None:
    """Start the fork server, unless it runs already. This returns at once."""
    _context.set_forkserver_preload(["spu_server.drivers.preload"])
    forkserver.ensure_running()


def start_process(target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> BaseProcess:
    """Start a process that runs a function, and that ends with this one. This blocks while the fork server imports.

    Raises:
        OSError: when the system lacks the resources for another process.
    """
    try:
        process: BaseProcess = _context.Process(target=target, args=arguments, name=name, daemon=True)
        process.start()
    except (OSError, EOFError):  # the fork server's socket, a temporary file, has been removed; or it ends just now
        process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, name=name, daemon=True)
        process.start()
    return process
