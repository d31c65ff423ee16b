"""The daemon's end of a driver in a separate process: algebra or a crash there never stalls or kills the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.reduction import ForkingPickler, send_handle
from typing import Any, TypeVar, TypeVarTuple, cast

import numpy as np
import torch

from spu_link.errors import DeviceFault, SpuError
from spu_server.descriptors import close
from spu_server.drivers.base import Capabilities, DriverOptions, Measured
from spu_server.drivers.deadline import ANSWER_SECONDS, Deadline
from spu_server.drivers.forking import start_process
from spu_server.drivers.hosted import READINGS, CheckedDriver, Done, Due, HostedDriver, Message, serve
from spu_server.drivers.port import DriverPort
from spu_server.drivers.saved import Standing
from spu_server.memory import Payload, SharedBytes, Stretch

START_SECONDS = 60.0
"""Timeout for a driver to open its device, in seconds."""

BYTES_PER_SECOND = 50e6
"""Min rate at which an upload or a saved state is copied and checked; the driver's own time comes on top."""

MIN_ANNOUNCED = 0.5
"""Min announcement that is worth a message, as a fraction of the timeout, which comes on top of it."""

STOP_SECONDS = 1.0
"""Timeout for a driver to close, in seconds, after which it is killed."""

KEPT_BYTES = 1 << 26
"""Memory for readings up to this size (64 MiB) is kept from one to the next."""

INLINE_BYTES = 1 << 20
"""Messages up to this size, 0.3 ms, cross the connection on the event loop itself."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class DriverProcess(DriverPort[Payload]):
    """The daemon's end: the driver's calls, awaitable.

    Calls and answers take turns on one connection, and no thread waits for them: a hop between threads costs more than
    the exchange itself.

    Args:
        name: entry point of the driver.
        options: what the driver is opened with.
        deadline: timeout of a call, in seconds, beyond what the driver announces, after which it counts as hung.
    """

    def __init__(self, name: str, options: DriverOptions, deadline: float = ANSWER_SECONDS) -> None:
        self._name = name
        self._options = options
        self._timeout = deadline
        self._deadline: Deadline
        self._halt_seconds = 0.0
        self._fault = ""
        self._starting: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()
        self._exchanges: set[asyncio.Task[Any]] = set()
        self._arrival: asyncio.Future[None] | None = None
        self._regions: set[int] = set()
        self._readings = SharedBytes(0, "spu-readings")

    async def start(self) -> Capabilities:
        """Start the process and open the device.

        Raises:
            DeviceFault: with the driver's own words, when it cannot be opened; or when its process cannot be started.
        """
        loop = asyncio.get_running_loop()
        self._starting = loop.run_in_executor(None, self._start_process)
        try:
            await asyncio.shield(self._starting)  # a cancelled start goes on, and `close` ends what it has started
        except OSError as error:
            raise self._failure(f"driver {self._name}'s process cannot be started: {error}") from error
        self._fault = ""
        loop.add_reader(self._connection.fileno(), self._readable)
        capabilities = cast(Capabilities, await self._run(self._answer("being opened", START_SECONDS)))
        await self._run(self._call(HostedDriver.remember, READINGS, descriptor=self._readings.fileno()))
        self._halt_seconds = capabilities.halt_seconds
        return capabilities

    async def restart(self) -> Capabilities:
        """End the process, whatever it is doing, and start another one.

        Raises:
            DeviceFault: as `start`.
        """
        self._fault = self._fault or f"driver {self._name} is being restarted"  # until there is another process
        if await self._has_process():
            await self._end()
        self._regions = set()
        return await self.start()

    @property
    def busy(self) -> bool:
        """True while a call is under way."""
        return self._turn.locked()

    def condemn(self, reason: str) -> None:
        """Treat the driver as failed, for a reason that it did not give itself."""
        self._fail(self._failure(f"driver {self._name}: {reason}"))

    @property
    def pid(self) -> int:
        """Process id of the driver's process."""
        assert self._process.pid is not None
        return self._process.pid

    async def stage(self, header: bytes, payload: Payload) -> None:
        """Let the driver's process take the payload, verify every value and stage the program."""
        if isinstance(payload, bytes):
            await self._run(self._call(HostedDriver.stage_via_message, header, payload, nbytes=len(payload)))
        else:
            await self._run_with(payload, lambda descriptor: self._stage(header, payload, descriptor))

    async def save(self, at: float, standing: Standing) -> SharedBytes:
        """Return the device's whole state, in a memory file for the caller to close."""
        return await self._run(self._save(at, standing))

    async def restore(self, payload: Payload) -> Standing:
        """Verify a saved state, in a memory file, and stage it."""
        assert isinstance(payload, SharedBytes)
        nbytes, method = payload.nbytes, HostedDriver.restore_via_file
        return await self._run_with(
            payload, lambda descriptor: self._call(method, nbytes, descriptor=descriptor, nbytes=nbytes)
        )

    async def call(self, method: Callable[[CheckedDriver, *Ts], T], *arguments: *Ts) -> T:
        """Make a call."""
        return await self._run(self._call(method, *arguments))

    async def read(self, at: float, window: int | None) -> Measured:
        """Measure."""
        return await self._run(self._read(at, window))

    async def halt(self, at: float) -> None:
        """Drop all programs and discharge the cells. A driver that is busy for too long is killed.

        As for every call, time in which its process waited for a processor is not its own.
        """
        halting = self._begin(self._call(CheckedDriver.halt, at))
        halting.add_done_callback(_retrieve_error)
        deadline = Deadline(self.pid)  # not `self._deadline`, which is that of the call under way
        deadline.begin(self._halt_seconds)
        try:
            while not halting.done() and (left := deadline.seconds_left()) > 0.0:
                await asyncio.wait([halting], timeout=left)
            # This process may have waited for a processor too, while the answer came.
            done, _ = await asyncio.wait([halting], timeout=0.001)
        finally:
            deadline.close()
        if not done:
            self.condemn(f"it was busy for more than {self._halt_seconds:g} s when the device was halted: killed")
        else:
            await halting

    def forget(self, region: int) -> None:
        """Let the driver's process close the descriptor of a region that has gone."""
        self._begin(self._forget(region)).add_done_callback(_retrieve_error)

    async def close(self) -> None:
        """Close the device and end the process; a process that does not end is killed."""
        if await self._has_process():
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._connection.fileno())
            if self._process.is_alive() and not self._fault:
                with suppress(OSError):  # it has ended just now
                    self._connection.send(None)
            await loop.run_in_executor(None, self._process.join, STOP_SECONDS)
            await self._end()
        self._readings.close()

    def _start_process(self) -> None:
        """Start the process, in a thread: it takes seconds while the fork server imports."""
        connection, theirs = Pipe()
        with theirs:
            arguments = (theirs, self._name, self._options, MIN_ANNOUNCED * self._timeout)
            self._process = start_process(serve, arguments, f"spu-driver-{self._name}")
        self._connection = connection
        self._deadline = Deadline(self.pid)

    async def _has_process(self) -> bool:
        """Return whether a process has been started, after a start that is under way."""
        if self._starting is None:
            return False
        await asyncio.wait([self._starting])
        return self._starting.exception() is None

    async def _end(self) -> None:
        """Kill the process, if it still runs, and close the connection to it."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._connection.fileno())
        self._process.kill()
        await loop.run_in_executor(None, self._process.join)
        for exchange in self._exchanges:
            exchange.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        self._connection.close()
        self._deadline.close()

    async def _run(self, exchange: Coroutine[Any, Any, T]) -> T:
        """Await an exchange. It goes on to its end though nobody may want its result any more."""
        return await asyncio.shield(self._begin(exchange))

    async def _run_with(self, payload: SharedBytes | Stretch, exchange: Callable[[int], Coroutine[Any, Any, T]]) -> T:
        """Await an exchange with a descriptor of its own: the caller may go before its turn, and take another along."""
        descriptor = os.dup(payload.fileno())
        task = self._begin(exchange(descriptor))
        task.add_done_callback(lambda _: close(descriptor, payload.nbytes))
        return await asyncio.shield(task)

    def _begin(self, exchange: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(self._take_turn(exchange))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)
        return task

    async def _take_turn(self, exchange: Coroutine[Any, Any, T]) -> T:
        async with self._turn:
            if self._fault:
                exchange.close()
                raise self._failure(self._fault)
            try:
                return await exchange
            except DeviceFault as error:
                self._fail(error)
                raise self._failure(self._fault) from error

    def _fail(self, error: DeviceFault) -> None:
        """Note a fault; the first one counts, and what was under way ends with it."""
        if self._fault:
            return
        self._fault = error.message
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        self._process.kill()
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_exception(error)
        self.on_fault(error)

    def _readable(self) -> None:
        """Receive an answer; or, with no call under way, the end of the process, reported before the next call."""
        if self._arrival is not None:
            if not self._arrival.done():
                self._arrival.set_result(None)
        elif not self._turn.locked() and self._connection.poll():  # else it has been received meanwhile
            self._begin(self._receive_unasked()).add_done_callback(_retrieve_error)

    async def _call(
        self,
        method: Callable[[HostedDriver, *Ts], T],
        *arguments: *Ts,
        descriptor: int | None = None,
        nbytes: int = 0,
    ) -> T:
        """Make a call, which has its turn; with a descriptor, or `nbytes` that are copied and checked."""
        data = ForkingPickler.dumps((method, arguments))
        await self._transfer(len(data), self._connection.send_bytes, data)
        if descriptor is not None:
            with self._watch_connection():
                send_handle(self._connection, descriptor, self.pid)
        name = method.__name__.partition("_via_")[0]
        return cast(T, await self._answer(name, self._timeout + nbytes / BYTES_PER_SECOND))

    async def _stage(self, header: bytes, payload: SharedBytes | Stretch, descriptor: int) -> None:
        nbytes = payload.nbytes
        if isinstance(payload, SharedBytes):
            await self._call(HostedDriver.stage_via_file, header, nbytes, descriptor=descriptor, nbytes=nbytes)
            return
        number = payload.region.number
        if number not in self._regions:
            await self._call(HostedDriver.remember, number, descriptor=descriptor)
            self._regions.add(number)
        await self._call(HostedDriver.stage_via_region, header, number, payload.offset, nbytes, nbytes=nbytes)

    async def _save(self, at: float, standing: Standing) -> SharedBytes:
        file = SharedBytes(0, "spu-state")
        file.nbytes = await self._call(HostedDriver.save_via_file, at, standing, descriptor=file.fileno())
        return file

    async def _forget(self, region: int) -> None:
        if region in self._regions:  # only now: a program that lies there may have been waiting for its turn
            self._regions.discard(region)
            await self._call(HostedDriver.forget, region)

    async def _read(self, at: float, window: int | None) -> Measured:
        dtype, count, time = await self._call(HostedDriver.read_via_memory, at, window)
        value = np.empty(count, dtype=dtype)
        await self._transfer(value.nbytes, self._readings.read, value.data.cast("B"))
        if value.nbytes > KEPT_BYTES:
            self._readings.clear()
        return Measured(torch.from_numpy(value), time)

    async def _answer(self, call: str, seconds: float) -> object:
        """Return the result of a call that takes up to `seconds`, or as long as the driver announces.

        Raises:
            DeviceFault: when it does not come, or the driver fails.
            SpuError: when the driver refuses the call.
        """
        self._deadline.begin(seconds)
        try:
            while isinstance(message := await self._message(call), Due):
                self._deadline.extend(message.seconds + self._timeout)
        finally:
            self._deadline.end()
        if isinstance(message, Done):
            return message.result
        raise message

    async def _message(self, call: str) -> Message:
        """Return the driver's next message."""
        try:
            # Asked again after each wake: a wake may be due to a message that has been received meanwhile.
            while not self._connection.poll():
                if self._fault:  # while something was being sent; nobody listens to the process any more
                    raise self._failure(self._fault)
                left = self._deadline.seconds_left()
                if left <= 0.0:
                    seconds = f"{self._deadline.allowed:.3g} s"
                    raise self._failure(f"driver {self._name} hangs: no answer to {call} within {seconds}")
                self._arrival = asyncio.get_running_loop().create_future()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._arrival
        finally:
            self._arrival = None
        return self._receive()

    async def _receive_unasked(self) -> None:
        """Receive a message while no call is under way: how long the driver will be busy, or why it has failed."""
        if not self._connection.poll():  # a call that went first has received it
            return
        message = self._receive()
        if isinstance(message, SpuError):
            raise message
        assert isinstance(message, Due), message
        self._deadline.extend(message.seconds + self._timeout)

    def _receive(self) -> Message:
        with self._watch_connection():
            message: Message = self._connection.recv()
        return message

    async def _transfer(self, nbytes: int, function: Callable[[T], object], data: T) -> None:
        """Send or receive on the event loop what takes less time than a hop to a thread, and the rest in one."""
        with self._watch_connection():
            if nbytes <= INLINE_BYTES:
                function(data)
            else:
                await asyncio.get_running_loop().run_in_executor(None, function, data)

    @contextmanager
    def _watch_connection(self) -> Iterator[None]:
        """Raise why the process has ended if the connection breaks inside the block."""
        try:
            yield
        except (EOFError, OSError) as error:
            self._process.join(STOP_SECONDS)
            code = self._process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
            raise self._failure(f"driver {self._name}'s process ended with {how}") from error

    def _failure(self, message: str) -> DeviceFault:
        return DeviceFault(message, field="driver", found=self._name)


def _retrieve_error(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of an exchange that nobody waits for, so that asyncio does not log it; `on_fault` has it."""
    if not task.cancelled():
        task.exception()
