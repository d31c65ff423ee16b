"""The thread on which the client's event loop runs."""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable
from functools import cache, partial
from multiprocessing.util import Finalize
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from host_client import aio
from host_client.frames import release_frames
from host_client.ownership import leave_loop_alone
from spu_link.errors import DeviceUnavailable, ProtocolError, SpuError
from spu_link.operators import Operator
from spu_link.program import Program

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

EXIT_SECONDS = 2.0
"""Max wait for a device at the exit of the process: to release it, and end what is under way."""


class _Call(Generic[T]):
    """A coroutine on an event loop, for whose end another thread waits.

    That thread takes no lock of Python, as with a `concurrent.futures.Future`: an interrupt in the middle of a
    `threading.Condition` raises RuntimeError, or leaves the lock taken, for which the loop would then wait for ever.

    Args:
        loop: on which it runs.
        begin: makes the coroutine, there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._loop, self._begin = loop, begin
        self._ended: SimpleQueue[asyncio.Task[T]] = SimpleQueue()
        self._task: asyncio.Task[T] | None = None

    def result(self, timeout: float | None = None) -> T:
        """Run it, and return or raise what it does; an interrupt of the caller cancels it.

        Raises:
            Empty: when it has not ended after `timeout` seconds.
        """
        try:
            self._loop.call_soon_threadsafe(self._start)
            task = self._ended.get(timeout=timeout)
        except BaseException:
            self._loop.call_soon_threadsafe(self._cancel)
            raise
        try:
            return task.result()
        finally:
            del task, self  # an error that somebody keeps would keep them

    def _start(self) -> None:
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._end)

    async def _run(self) -> T:
        return await self._begin()

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # is retrieved hereby, also for a caller that was interrupted
        self._ended.put(task)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


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
        """True if the caller runs on it."""
        return threading.current_thread() is self._thread

    def close_soon(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Close what nobody refers to any more, unless it belongs to the parent of a forked child."""
        if self._process == os.getpid() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._close, close)

    def _close(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self.loop.create_task(_close_quietly(close))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _end(self) -> None:
        """Close all connections, and end the thread."""
        if self._process != os.getpid() or self.loop.is_closed():
            return
        try:
            _Call(self.loop, self._finish).result(3 * EXIT_SECONDS)
        except Empty:
            return  # it is busy; it ends with the process
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _finish(self) -> None:
        closing = [
            *self._closing,
            *(asyncio.create_task(_close_quietly(connection.close)) for connection in self.connections),
        ]
        if closing:
            await asyncio.wait(closing, timeout=EXIT_SECONDS)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=EXIT_SECONDS)
        await self.loop.shutdown_asyncgens()


async def _close_quietly(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
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


def _after_fork() -> None:
    """Forget the parent's thread, which is not here: the child starts its own."""
    global _client, _starting
    _starting = threading.Lock()
    if _client is not None:
        leave_loop_alone(_client.loop)
    _client = None


os.register_at_fork(after_in_child=_after_fork)


def wait(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on the client's loop. Every coroutine here has a deadline; an interrupt of the caller cancels it.

    Args:
        begin: makes the coroutine. It is called on the loop, so that an interrupt leaves none that never runs.

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
    try:
        return _Call(client.loop, begin).result()
    except asyncio.CancelledError:
        raise DeviceUnavailable("the connection was closed during the call") from None
    except BaseException as error:
        release_frames(error)
        raise
    finally:
        del begin  # an error that somebody keeps would keep it


def post(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call on the client's loop, after what was asked of it before, and go on."""
    client_thread().loop.call_soon_threadsafe(partial(function, *args, **kwargs))


def follow(arguments: Iterable[object]) -> None:
    """Let what the loop's thread asks of an accelerator come after what this thread has asked of it, on any stream.

    Args:
        arguments: of a call that will go to the loop; tensors, operators and programs say which accelerators.
    """
    if not _has_accelerator():
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
        elif isinstance(argument, Program):
            follow([argument.operator, argument.drive, argument.start])
    for device in devices:
        if device.type != "cpu":
            post(_wait_for, device, torch.accelerator.current_stream(device).record_event())


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _wait_for(device: torch.device, asked: torch.Event) -> None:
    torch.accelerator.current_stream(device).wait_event(asked)
