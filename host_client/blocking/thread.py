"""The thread on which the client's event loop runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from functools import cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from spu_link.operators import Operator

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


def follow(arguments: Iterable[object]) -> None:
    """Let what the loop's thread asks of an accelerator come after what this thread has asked of it, on any stream.

    Args:
        arguments: of a call that will go to the loop; tensors and operators among them say which accelerators.
    """
    if not _accelerated():
        return
    devices: set[torch.device] = set()

    def note(tensor: Tensor) -> Tensor:
        devices.add(tensor.device)
        return tensor

    for argument in arguments:
        if isinstance(argument, Tensor):
            note(argument)
        elif isinstance(argument, Operator):
            argument.map(note)
    for device in devices:
        if device.type != "cpu":
            post(_wait_for, device, torch.accelerator.current_stream(device).record_event())


@cache
def _accelerated() -> bool:
    return torch.accelerator.is_available()


def _wait_for(device: torch.device, asked: torch.Event) -> None:
    torch.accelerator.current_stream(device).wait_event(asked)


def waiting(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """A method of a facade: calls the one of that name of what is behind, ``self._aio``, and waits for it.

    Arguments, types and documentation are those of `method`, the asynchronous one.
    """
    name = method.__name__

    @wraps(method)
    def blocking(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        follow([*args, *kwargs.values()])
        coroutine: Coroutine[Any, Any, T] = getattr(self._aio, name)(*args, **kwargs)
        return wait(coroutine)

    return blocking
