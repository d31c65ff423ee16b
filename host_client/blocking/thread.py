"""The thread on which the client's event loop runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
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


def post(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call on the client's loop, after what was asked of it before, and go on."""
    _loop().call_soon_threadsafe(partial(function, *args, **kwargs))
