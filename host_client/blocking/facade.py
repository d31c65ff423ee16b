"""Call an object of the asynchronous API from any thread."""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Never, ParamSpec, Self, TypeVar, get_args, overload

from host_client.blocking.thread import client_thread, follow, wait
from host_client.ownership import Owned

P = ParamSpec("P")
T = TypeVar("T")
B = TypeVar("B")
F = TypeVar("F", bound="Facade[Any]")


class Facade(Owned, Generic[B]):
    """Base class of the blocking API. The asynchronous object is closed with the last reference to its facade.

    Args:
        behind: the asynchronous object, which belongs to the client's loop.
        owner: kept alive as long as the facade.
    """

    _closing = "close"
    """Method of the asynchronous object that leaves nothing of it open; may be called twice."""

    def __init__(self, behind: B, owner: object = None) -> None:
        self._behind, self._owner = behind, owner
        self._close = getattr(behind, self._closing)
        self._drop = weakref.finalize(self, client_thread().close_soon, self._close)
        self._drop.atexit = False  # the client's thread then closes what is left

    @property
    def aio(self) -> B:
        """The asynchronous object, to be used on the client's loop only.

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


class ContextFacade(Facade[B]):
    """A facade that is closed at the end of a ``with`` block."""

    def __enter__(self) -> Self:
        """Return the facade itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()


class Attribute(property, Generic[T]):
    """Read-only attribute of a facade: the attribute of that name of the asynchronous object.

    Args:
        doc: documentation; by default that of the asynchronous class's property.
    """

    def __init__(self, doc: str | None = None) -> None:
        super().__init__()
        self.__doc__ = doc

    def __set_name__(self, facade: Any, name: str) -> None:
        """Derive getter and documentation from the name and the class, a ``Facade[asynchronous class]``."""
        (behind,) = get_args(facade.__orig_bases__[0])
        doc = self.__doc__ or getattr(behind, name).__doc__
        super().__init__(attrgetter(f"aio.{name}"))
        self.__doc__ = doc

    if TYPE_CHECKING:

        def __get__(self, facade: object, owner: type | None = None) -> T: ...  # type: ignore[override]
        def __set__(self, facade: object, value: Never) -> Never: ...


@overload
def async_to_sync(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]: ...
@overload
def async_to_sync(
    method: Callable[Concatenate[Any, P], object], facade: type[F]
) -> Callable[Concatenate[Any, P], F]: ...
def async_to_sync(method: Callable[..., Any], facade: type[Facade[Any]] | None = None) -> Callable[..., Any]:
    """Return a method of a facade that calls the one of that name of `Facade.aio` on the client's loop, and waits.

    Args:
        method: of the asynchronous class; arguments, types and documentation are the same.
        facade: class of the facade of what `method` returns, if that is asynchronous itself.
    """
    name = method.__name__

    @wraps(method)
    def blocking(self: Facade[Any], /, *args: Any, **kwargs: Any) -> Any:
        follow([*args, *kwargs.values()])
        call: Callable[[], Any] = partial(getattr(self.aio, name), *args, **kwargs)
        del args, kwargs  # an error that somebody keeps would keep them
        if facade is not None:
            call = partial(_call_and_wrap, call, facade, self)
        try:
            return wait(call)
        finally:
            del call

    blocking.__doc__ = re.sub(r"\basync (?=with )|\bawait ", "", method.__doc__ or "")
    return blocking


async def _call_and_wrap(call: Callable[[], Any], facade: type[F], owner: Facade[Any]) -> F:
    """Return the result with a facade around it, made here so that nothing stays open of a call that is interrupted."""
    result = call()
    return facade(await result if inspect.isawaitable(result) else result, owner)
