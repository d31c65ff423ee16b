"""The daemon's end of a driver in a separate process: algebra or a crash there never stalls or kills the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.reduction import ForkingPickler, send_handle
from typing import Any, TypeVar

import numpy as np
import torch

from spu_link.errors import DeviceFault
from spu_server.descriptors import close
from spu_server.drivers.base import Capabilities, DriverOptions, Measured
from spu_server.drivers.deadline import ANSWER_SECONDS, Deadline
from spu_server.drivers.forking import start_process
from spu_server.drivers.hosted import (
    DUE,
    FORGET,
    READINGS,
    REMEMBER,
    RESTORE,
    SAVE,
    STAGE_BYTES,
    STAGE_FILE,
    STAGE_REGION,
    serve,
)
from spu_server.drivers.port import DriverPort
from spu_server.memory import Payload, SharedBytes
from spu_server.saved import Standing
from tngd.spu.v1 import spu_pb2 as pb

START_SECONDS = 60.0
"""Longest that a driver may take to open its device."""

BYTES_PER_SECOND = 50e6
"""Slowest that an upload or a saved state is copied and looked at, in addition to what the driver does with it."""

LEAST_ANNOUNCED = 0.5
"""Announcements of a smaller fraction of the deadline, which comes on top of them, are not worth a message."""

STOP_SECONDS = 1.0
"""Longest that a driver may take to close before it is killed."""

KEPT_BYTES = 1 << 26
"""Memory for readings up to this size (64 MiB) is kept from one to the next."""

INLINE_BYTES = 1 << 20
"""Messages up to this size, 0.3 ms, cross the connection on the event loop itself."""

T = TypeVar("T")


class DriverProcess(DriverPort[Payload]):
    """The daemon's end: the driver's calls, awaitable.

    Calls and answers take turns on one connection, and no thread waits for them: a hop between threads costs more than
    the exchange itself.

    Args:
        name: entry point of the driver.
        options: what the driver is opened with.
        deadline: longest that a call may take, in seconds, beyond what the driver announces, before it counts as hung.
    """

    def __init__(self, name: str, options: DriverOptions, deadline: float = ANSWER_SECONDS) -> None:
        self._name = name
        self._options = options
        self._deadline = deadline
        self._due: Deadline
        self._halt_seconds = 0.0
        self._fault = ""
        self._starting: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()
        self._exchanges: set[asyncio.Task[Any]] = set()
        self._came: asyncio.Future[None] | None = None
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
            raise DeviceFault(
                f"driver {self._name}'s process cannot be started: {error}", field="driver", found=self._name
            ) from error
        self._fault = ""
        loop.add_reader(self._connection.fileno(), self._readable)
        capabilities: Capabilities = await self._run(self._answer("being opened", START_SECONDS))
        await self._run(self._remember(READINGS, self._readings.fileno()))
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
        self._fail(DeviceFault(f"driver {self._name}: {reason}", field="driver", found=self._name))

    @property
    def pid(self) -> int:
        """Process id of the driver's process."""
        assert self._process.pid is not None
        return self._process.pid

    async def stage(self, header: pb.ProgramHeader, payload: Payload) -> None:
        """Let the driver's process take the payload, verify every value and stage the program."""
        if isinstance(payload, bytes):
            await self._run(self._stage(header, payload, None))
            return
        # The caller may go, and take its own descriptor along, while the exchange waits for its turn.
        descriptor = os.dup(payload.fileno())
        exchange = self._begin(self._stage(header, payload, descriptor))
        exchange.add_done_callback(lambda _: close(descriptor, payload.nbytes))
        await asyncio.shield(exchange)

    async def save(self, at: float, standing: Standing) -> SharedBytes:
        """Return the device's whole state, in a memory file for the caller to close."""
        return await self._run(self._save(at, standing))

    async def restore(self, payload: Payload) -> Standing:
        """Verify a saved state, in a memory file, and stage it."""
        assert isinstance(payload, SharedBytes)
        descriptor = os.dup(payload.fileno())  # as in `stage`
        exchange: asyncio.Task[Standing] = self._begin(self._restore(payload.nbytes, descriptor))
        exchange.add_done_callback(lambda _: close(descriptor, payload.nbytes))
        return await asyncio.shield(exchange)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call one of the driver's methods."""
        return await self._run(self._call(method, *arguments))

    async def read(self, at: float, window: int | None) -> Measured:
        """Measure."""
        return await self._run(self._read(at, window))

    async def halt(self, at: float) -> None:
        """Drop all programs and discharge the cells. A driver that is busy for too long is killed.

        As for every call, time in which its process waited for a processor is not its own.
        """
        halting = self._begin(self._call("halt", at))
        halting.add_done_callback(_look_at)
        due = Deadline(self.pid)
        due.begin(self._halt_seconds)
        try:
            while not halting.done() and (left := due.left()) > 0.0:
                await asyncio.wait([halting], timeout=left)
            # This process may have waited for a processor too, while the answer came.
            done, _ = await asyncio.wait([halting], timeout=0.001)
        finally:
            due.close()
        if not done:
            self.condemn(f"it was busy for more than {self._halt_seconds:g} s when the device was halted: killed")
        else:
            await halting

    def forget(self, region: int) -> None:
        """Let the driver's process close the descriptor of a region that has gone."""
        self._begin(self._forget(region)).add_done_callback(_look_at)

    async def close(self) -> None:
        """Close the device and end the process; a process that does not end is killed."""
        if await self._has_process():
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._connection.fileno())
            if self._process.is_alive() and not self._fault:
                with suppress(OSError):  # it has ended just now
                    self._connection.send(("close", ()))
            await loop.run_in_executor(None, self._process.join, STOP_SECONDS)
            await self._end()
        self._readings.close()

    def _start_process(self) -> None:
        """Start the process, in a thread: it takes seconds while the fork server imports."""
        connection, theirs = Pipe()
        with theirs:
            arguments = (theirs, self._name, self._options, LEAST_ANNOUNCED * self._deadline)
            self._process = start_process(serve, arguments, f"spu-driver-{self._name}")
        self._connection = connection
        self._due = Deadline(self.pid)

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
        self._due.close()

    async def _run(self, exchange: Coroutine[Any, Any, T]) -> T:
        """Await an exchange. It goes on to its end though nobody may want its result any more."""
        return await asyncio.shield(self._begin(exchange))

    def _begin(self, exchange: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(self._take_turn(exchange))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)
        return task

    async def _take_turn(self, exchange: Coroutine[Any, Any, T]) -> T:
        async with self._turn:
            if self._fault:
                exchange.close()
                raise DeviceFault(self._fault, field="driver", found=self._name)
            try:
                return await exchange
            except DeviceFault as error:
                self._fail(error)
                raise DeviceFault(self._fault, field="driver", found=self._name) from error

    def _fail(self, error: DeviceFault) -> None:
        """The first fault counts; what was under way ends with it."""
        if self._fault:
            return
        self._fault = error.message
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        self._process.kill()
        if self._came is not None and not self._came.done():
            self._came.set_exception(error)
        self.on_fault(error)

    def _readable(self) -> None:
        """Receive an answer; or, with no call under way, the end of the process, reported before the next call."""
        if self._came is not None:
            if not self._came.done():
                self._came.set_result(None)
        elif not self._turn.locked() and self._connection.poll():  # else it has been received meanwhile
            self._begin(self._unasked()).add_done_callback(_look_at)

    async def _call(self, method: str, *arguments: Any, descriptor: int | None = None) -> Any:
        await self._send((method, arguments), descriptor)
        return await self._answer(method)

    async def _stage(self, header: pb.ProgramHeader, payload: Payload, descriptor: int | None) -> None:
        serialized = header.SerializeToString()
        if isinstance(payload, bytes):
            await self._send((STAGE_BYTES, (serialized, payload)))
        elif isinstance(payload, SharedBytes):
            await self._send((STAGE_FILE, (serialized, payload.nbytes)), descriptor)
        else:
            number = payload.region.number
            if number not in self._regions:
                assert descriptor is not None
                await self._remember(number, descriptor)
                self._regions.add(number)
            await self._send((STAGE_REGION, (serialized, number, payload.offset, payload.nbytes)))
        nbytes = len(payload) if isinstance(payload, bytes) else payload.nbytes
        await self._answer("stage", self._deadline + nbytes / BYTES_PER_SECOND)

    async def _restore(self, nbytes: int, descriptor: int) -> Standing:
        await self._send((RESTORE, (nbytes,)), descriptor)
        standing: Standing = await self._answer(RESTORE, self._deadline + nbytes / BYTES_PER_SECOND)
        return standing

    async def _save(self, at: float, standing: Standing) -> SharedBytes:
        file = SharedBytes(0, "spu-state")
        file.nbytes = await self._call(SAVE, at, standing, descriptor=file.fileno())
        return file

    async def _remember(self, number: int, descriptor: int) -> None:
        await self._send((REMEMBER, (number,)), descriptor)
        await self._answer(REMEMBER)

    async def _forget(self, region: int) -> None:
        if region in self._regions:  # only now: a program that lies there may have been waiting for its turn
            self._regions.discard(region)
            await self._call(FORGET, region)

    async def _read(self, at: float, window: int | None) -> Measured:
        dtype, count, time = await self._call("read", at, window)
        value = np.empty(count, dtype=dtype)
        await self._blocking(value.nbytes, self._readings.read, value.data.cast("B"))
        if value.nbytes > KEPT_BYTES:
            self._readings.clear()
        return Measured(torch.from_numpy(value), time)

    async def _send(self, message: tuple[str, tuple[Any, ...]], descriptor: int | None = None) -> None:
        data = ForkingPickler.dumps(message)
        await self._blocking(len(data), self._connection.send_bytes, data)
        if descriptor is not None:
            with self._connected():
                send_handle(self._connection, descriptor, self.pid)

    async def _answer(self, call: str, seconds: float | None = None) -> Any:
        """The driver's answer, within `seconds` or as long as it announces to take.

        Raises:
            DeviceFault: when it does not come, or is one.
        """
        self._due.begin(self._deadline if seconds is None else seconds)
        try:
            while (answer := await self._message(call))[0] == DUE:
                self._due.extend(answer[1] + self._deadline)
        finally:
            self._due.end()
        kind, value = answer
        if kind == "refused":
            raise value
        if kind == "fault":
            raise DeviceFault(f"driver {self._name}: {value}", field="driver")
        return value

    async def _message(self, call: str) -> tuple[str, Any]:
        """Return the driver's next message."""
        try:
            # Asked again after each wake: a wake may be due to a message that has been received meanwhile.
            while not self._connection.poll():
                if self._fault:  # while something was being sent; nobody listens to the process any more
                    raise DeviceFault(self._fault, field="driver", found=self._name)
                left = self._due.left()
                if left <= 0.0:
                    raise DeviceFault(
                        f"driver {self._name} hangs: no answer to {call} within {self._due.allowed:.3g} s",
                        field="driver",
                    )
                self._came = asyncio.get_running_loop().create_future()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._came
        finally:
            self._came = None
        return self._receive()

    async def _unasked(self) -> None:
        """Receive a message while no call is under way: how long the driver will be busy, or why it has failed."""
        if not self._connection.poll():  # a call that went first has received it
            return
        kind, value = self._receive()
        if kind == "fault":
            raise DeviceFault(f"driver {self._name}: {value}", field="driver")
        assert kind == DUE, kind
        self._due.extend(value + self._deadline)

    def _receive(self) -> tuple[str, Any]:
        with self._connected():
            message: tuple[str, Any] = self._connection.recv()
        return message

    async def _blocking(self, nbytes: int, transfer: Callable[[Any], object], data: Any) -> None:
        """Send or receive here what takes less time than a hop to a thread, and the rest there."""
        with self._connected():
            if nbytes <= INLINE_BYTES:
                transfer(data)
            else:
                await asyncio.get_running_loop().run_in_executor(None, transfer, data)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """A connection that breaks inside means that the process has ended."""
        try:
            yield
        except (EOFError, OSError) as error:
            self._process.join(STOP_SECONDS)
            code = self._process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
            raise DeviceFault(f"driver {self._name}'s process ended with {how}", field="driver") from error


def _look_at(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of an exchange that nobody waits for; `on_fault` has got it."""
    if not task.cancelled():
        task.exception()
