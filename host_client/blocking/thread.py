"""The thread on which the client's event loop runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

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


def waiting(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """A method of a facade: calls the one of that name of what is behind, ``self._aio``, and waits for it.

    Arguments, types and documentation are those of `method`, the asynchronous one.
    """
    name = method.__name__

    @wraps(method)
    def blocking(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        coroutine: Coroutine[Any, Any, T] = getattr(self._aio, name)(*args, **kwargs)
        return wait(coroutine)

    return blocking
