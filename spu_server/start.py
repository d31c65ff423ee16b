"""The begin of a daemon: it takes its addresses, and only then loads what computes."""

from __future__ import annotations

import asyncio
import signal

from spu_server.addresses import Endpoints
from spu_server.daemon_settings import ServeSettings
from spu_server.drivers.forking import begin_loading

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a daemon."""


async def start(settings: ServeSettings) -> None:
    """Run a daemon until SIGTERM or SIGINT.

    Raises:
        AddressError: when an address cannot be listened on.
        DeviceFault: when the driver cannot be opened, or its device finds that something is wrong with it.
        LogUnusable: when a log is asked for and cannot be written.
        SystemExit: when it is ended before it has begun, with exit code 0.
    """

    def leave(*_: object) -> None:
        raise SystemExit(0)

    for number in SIGNALS:
        signal.signal(number, leave)
    endpoints = Endpoints()
    try:
        await endpoints.bind(settings.listen, insecure_remote=settings.insecure_remote)
        begin_loading()
        from spu_server import daemon  # which takes seconds: an address that is refused is so at once

        stop = asyncio.Event()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await daemon.serve(settings, endpoints, stop)
    finally:
        endpoints.withdraw()
