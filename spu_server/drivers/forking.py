"""Where drivers' processes come from: forks of one process that has loaded what they need, and done nothing else.

It loads while the daemon does, so that a driver is there as soon as the daemon; and a driver that is started again is
there at once.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

context = multiprocessing.get_context("forkserver")


def begin_loading() -> None:
    """Start the process, unless it runs already. This returns at once."""
    context.set_forkserver_preload(["spu_server.drivers.hosted"])
    forkserver.ensure_running()
