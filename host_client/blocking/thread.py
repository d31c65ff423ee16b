"""The thread on which the client's event loop runs."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import math
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from functools import cache, partial
from multiprocessing.util import Finalize
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from host_client import aio
from host_client.forked import leave_loop_alone
from host_client.frames import release_frames
from spu_link.errors import DeviceUnavailable, ProtocolError, SpuError
from spu_link.operators import Operator

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

EXIT_SECONDS = 2.0
"""Longest wait for a device at the exit of the process: to give it back, and end what is under way."""


class _ClientThread:
    """An event loop on a thread, until the process exits."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.slow_callback_duration = math.inf  # with python -X dev: it copies uploads, and has no other duty
        self.connections: weakref.WeakSet[aio.Spu] = weakref.WeakSet()
        self._process = os.getpid()
        self._closing: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, name="spu-client", daemon=True)
        self._thread.start()
        atexit.register(self._end)
        if multiprocessing.parent_process() is not None:  # a worker ends without atexit
            Finalize(self, self._end, exitpriority=0)

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on it."""
        return threading.current_thread() is self._thread

    def close_soon(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Close what nobody refers to any more, unless it belongs to the parent of a forked child."""
        if self._process == os.getpid() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._close, close)

    def _close(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self.loop.create_task(_closed(close))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _end(self) -> None:
        """Close all connections, and end the thread."""
        if self._process != os.getpid() or self.loop.is_closed():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._ended(), self.loop).result(3 * EXIT_SECONDS)
        except TimeoutError:
            return  # it is busy; it ends with the process
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _ended(self) -> None:
        closing = [*self._closing, *(asyncio.create_task(_closed(one.close)) for one in self.connections)]
        if closing:
            await asyncio.wait(closing, timeout=EXIT_SECONDS)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=EXIT_SECONDS)
        await self.loop.shutdown_asyncgens()


async def _closed(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await close()
    except SpuError as error:
        log.debug("while closing what nobody refers to: %s", str(error))


_starting = threading.Lock()
_client: _ClientThread | None = None


def client_thread() -> _ClientThread:
    """The client's thread of this process; it starts at the first call."""
    global _client
    with _starting:
        if _client is None:
            _client = _ClientThread()
        return _client


def _forked() -> None:
    """The parent's thread is not here: the child starts its own."""
    global _client, _starting
    _starting = threading.Lock()
    if _client is not None:
        leave_loop_alone(_client.loop)
    _client = None


os.register_at_fork(after_in_child=_forked)


def wait(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on the client's loop. Every coroutine here has a deadline; an interrupt of the caller cancels it.

    Args:
        begin: makes the coroutine. It is called as late as can be, so that an interrupt leaves none that never runs.

    Raises:
        ProtocolError: on the client's thread itself, which would wait for itself.
        DeviceUnavailable: when the connection is closed meanwhile, or the process exits.
    """
    client = client_thread()
    if client.is_current:
        raise ProtocolError(
            "a blocking call from the client's own thread, such as from record=, would wait for itself; make it from "
            "another thread",
            field="thread",
            found=threading.current_thread().name,
        )
    if client.loop.is_closed():
        raise DeviceUnavailable("the process is about to exit, and its connections are closed")
    coroutine: Coroutine[Any, Any, T] | None = None
    future: Future[T] | None = None
    try:
        coroutine = begin()
        future = asyncio.run_coroutine_threadsafe(coroutine, client.loop)
        return future.result()
    except CancelledError:
        raise DeviceUnavailable("the connection was closed during the call") from None
    except BaseException as error:
        if future is not None:
            future.cancel()
        elif coroutine is not None and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()
        release_frames(error)
        raise
    finally:
        del begin, coroutine, future  # an error that somebody keeps would keep them


def post(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call on the client's loop, after what was asked of it before, and go on."""
    client_thread().loop.call_soon_threadsafe(partial(function, *args, **kwargs))


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
