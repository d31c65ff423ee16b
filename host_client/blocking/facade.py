"""Call an object of the asynchronous API from any thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from host_client.blocking.thread import client_thread, follow, wait
from host_client.forked import Owned

P = ParamSpec("P")
T = TypeVar("T")
B = TypeVar("B")


class Facade(Owned, Generic[B]):
    """Base class of the blocking API. What is behind it is closed with the last reference to the facade.

    Args:
        behind: what is called, on the client's loop.
        close: leaves nothing of it open; may be called twice.
    """

    def __init__(self, behind: B, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._behind, self._close = behind, close
        self._drop = weakref.finalize(self, client_thread().close_soon, close)
        self._drop.atexit = False  # the client's thread then closes what is left

    @property
    def _aio(self) -> B:
        """What is behind.

        Raises:
            WrongProcess: in a forked child.
        """
        self.check_process()
        return self._behind

    def close(self) -> None:
        """Close it, also if it is in use. Nothing happens if it is closed, or belongs to the parent of a forked child.

        Raises:
            DeadlineExceeded: when the device does not answer in time.
        """
        if not self.inherited and not client_thread().loop.is_closed():
            wait(self._close)
            self._drop.detach()


def waiting(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """A method of a facade: calls the one of that name of what is behind, ``self._aio``, and waits for it.

    Arguments, types and documentation are those of `method`, the asynchronous one.
    """
    name = method.__name__

    @wraps(method)
    def blocking(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        follow([*args, *kwargs.values()])
        called: Callable[[], Coroutine[Any, Any, T]] = partial(getattr(self._aio, name), *args, **kwargs)
        del args, kwargs  # an error that somebody keeps would keep them
        try:
            return wait(called)
        finally:
            del called

    return blocking
