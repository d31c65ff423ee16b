"""The thread on which the client's event loop runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="spu-client", daemon=True).start()
    return loop


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on the client's loop. Every coroutine here has a deadline; an interrupt of the caller cancels it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
