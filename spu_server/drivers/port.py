"""The calls of a driver: where it is, and as the device makes them, awaitable."""

from __future__ import annotations

import asyncio
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, TypeVarTuple

import torch

from spu_link import wire
from spu_link.errors import DeviceFault, SpuError
from spu_link.program import Program
from spu_link.values import all_finite
from spu_server.drivers.base import Capabilities, Driver, DriverOptions, Measured, measured
from spu_server.drivers.registry import open_driver
from spu_server.drivers.saved import Standing, decode, encode
from spu_server.dynamics.effort import max_seconds

P = TypeVar("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

NOT_RESTARTED = "a driver in this process is not started again: close this connection and open another"
"""Remedy in a fault after the device has been opened; a daemon starts its driver again by itself."""


class CheckedDriver:
    """The calls of a driver: makes verified programs of bytes, knows which one runs, and checks readings.

    Args:
        driver: the device's.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._staged: Program | None = None
        self._running: Program | None = None

    def stage(self, header: bytes, memory: memoryview) -> None:
        """Verify every value of a program that has not been verified, and stage it with its readings.

        Raises:
            InvalidProgram: when a value is not what it must be.
            OperatorGone: when it keeps the running program's operator, and none runs.
        """
        message = wire.parse_header(header)
        program = wire.program_from(message, memory, self._running)
        self._driver.announce(max_seconds(program.operator))
        if self._running is not None and program.operator is self._running.operator:
            program.check_vectors()
        else:
            program.check_values()
        self._driver.stage(program)
        self._driver.schedule([(read.after, read.window) for read in message.reads])
        self._staged = program

    def save(self, at: float, standing: Standing) -> bytes:
        """Return the device's whole state at device time `at`."""
        saved = self._driver.save(at)
        if saved.program is not None:
            self._driver.announce(max_seconds(saved.program.operator))
        return encode(saved, standing, self._driver.capabilities.name)

    def restore(self, data: bytes | bytearray | memoryview) -> Standing:
        """Verify a saved state and stage it; return the status that the device had.

        Raises:
            InvalidProgram: when it is not one of this driver.
        """
        saved, standing = decode(data, self._driver.capabilities.name, self._driver.capabilities.cells)
        if saved.program is not None:
            self._driver.announce(max_seconds(saved.program.operator))
        self._driver.restore(saved)
        self._staged = saved.program
        return standing

    def commit(self, at: float) -> None:
        """Apply the staged program."""
        self._driver.commit(at)
        self._running, self._staged = self._staged, None

    def open_window(self, window: int, start: float) -> None:
        """Begin a time average."""
        self._driver.open_window(window, start)

    def close_window(self, window: int) -> None:
        """Forget a time average."""
        self._driver.close_window(window)

    def read(self, at: float, window: int | None) -> Measured:
        """Measure.

        Raises:
            DeviceFault: when the driver returns a reading that cannot be the cells' state.
        """
        reading = measured(self._driver.read(at, window), at)
        assert self._running is not None, "a driver measured without a program"
        value, drive = reading.value, self._running.drive
        if value.shape != drive.shape or value.dtype != drive.dtype:
            wrong = f"of shape {tuple(value.shape)} and {value.dtype}; expected {tuple(drive.shape)} and {drive.dtype}"
        elif not (all_finite(value) and math.isfinite(reading.time)):
            wrong = f"with {int((~torch.isfinite(value)).sum())} values that are not finite, taken at {reading.time} τ"
        else:
            return reading
        raise DeviceFault(f"the driver returned a reading {wrong}", field="driver", expected="a state")

    def halt(self, at: float) -> None:
        """Drop all programs and discharge the cells."""
        self._driver.halt(at)
        self._running = self._staged = None

    def clock(self) -> float | None:
        """Return the seconds on the device's own clock; None where it has none."""
        return self._driver.clock()

    def self_test(self) -> str:
        """Return what an idle device's self-test finds; empty if nothing."""
        return self._driver.self_test()

    def calibrate(self) -> None:
        """Let an idle device measure and correct its own errors."""
        self._driver.calibrate()

    def report(self) -> Mapping[str, float]:
        """Return counts and measurements of the device, by name."""
        return self._driver.report()


class DriverPort(ABC, Generic[P]):
    """Calls of a `CheckedDriver`, one at a time, in the order they are made, off the event loop.

    P is what carries the bytes of an upload. Every call raises `DeviceFault` when the driver fails.

    Attributes:
        on_fault: called, on the event loop, once the driver has failed: in a call, before that raises, or by itself.
    """

    on_fault: Callable[[DeviceFault], None] = staticmethod(lambda error: None)

    @abstractmethod
    async def stage(self, header: bytes, payload: P) -> None:
        """Verify every value of a program and stage it.

        Args:
            header: what `wire.layout` made of the client's header.
            payload: the bytes of its tensors.

        Raises:
            InvalidProgram: when a value is not what it must be.
        """

    @abstractmethod
    async def save(self, at: float, standing: Standing) -> P:
        """Return the device's whole state at device time `at`, as bytes that belong to the caller."""

    @abstractmethod
    async def restore(self, payload: P) -> Standing:
        """Verify a saved state and stage it; return the status that the device had.

        Raises:
            InvalidProgram: when it is not one of this driver.
        """

    @abstractmethod
    async def call(self, method: Callable[[CheckedDriver, *Ts], T], *arguments: *Ts) -> T:
        """Make a call whose arguments and result are small."""

    async def commit(self, at: float) -> None:
        """Apply the staged program."""
        await self.call(CheckedDriver.commit, at)

    async def read(self, at: float, window: int | None) -> Measured:
        """Measure."""
        return await self.call(CheckedDriver.read, at, window)

    async def halt(self, at: float) -> None:
        """Drop all programs and discharge the cells."""
        await self.call(CheckedDriver.halt, at)

    def note_restart(self) -> None:
        """Note that the driver has failed and been opened again: nothing is in force."""


class LocalDriver(DriverPort[memoryview]):
    """A driver on a thread of this process, for a device without a daemon: the event loop stays free meanwhile."""

    def __init__(self, name: str, options: DriverOptions) -> None:
        self._name = name
        self._options = options
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"driver-{name}")
        self._driver: Driver
        self._preparation: Future[None] | None = None

    async def start(self) -> Capabilities:
        """Open the device.

        Raises:
            DeviceFault: with the driver's own words, when it cannot be opened.
        """
        try:
            await self._run(self._open)
        except BaseException:
            self._thread.submit(self._give_up)
            self._thread.shutdown(wait=False)
            raise
        self._checked = CheckedDriver(self._driver)
        return self._driver.capabilities

    def _open(self) -> None:
        self._driver = open_driver(self._name, self._options)

    def _give_up(self) -> None:
        """Close the device, should it have been opened for a caller who had gone by then."""
        if hasattr(self, "_driver"):
            self._driver.close()

    async def stage(self, header: bytes, payload: memoryview) -> None:
        """Verify every value of a program and stage it."""
        await self.call(CheckedDriver.stage, header, payload)

    async def save(self, at: float, standing: Standing) -> memoryview:
        """Return the device's whole state."""
        return memoryview(await self.call(CheckedDriver.save, at, standing))

    async def restore(self, payload: memoryview) -> Standing:
        """Verify a saved state and stage it."""
        return await self.call(CheckedDriver.restore, payload)

    async def call(self, method: Callable[[CheckedDriver, *Ts], T], *arguments: *Ts) -> T:
        """Make a call."""
        try:
            return await self._run(method, self._checked, *arguments)
        except DeviceFault as error:
            self.on_fault(error)
            raise

    async def commit(self, at: float) -> None:
        """Apply the staged program, and work ahead under it."""
        await super().commit(at)
        self._preparation = self._thread.submit(self._driver.prepare)

    async def close(self) -> None:
        """Close the device and end the thread."""
        if threading.main_thread().is_alive():
            await self._run(self._driver.close)
        else:  # the process exits, and all executors' threads have ended
            self._driver.close()
        self._thread.shutdown()
        del self._driver, self._checked  # whoever keeps a closed device keeps no program

    async def _run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        def run() -> T:
            if self._preparation is not None:
                preparation, self._preparation = self._preparation, None
                preparation.result()
            return function(*arguments)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except DeviceFault as error:
            raise DeviceFault(f"{error.message}; {NOT_RESTARTED}", field="driver") from error
        except SpuError:
            raise
        except Exception as error:
            way_out = f"; {NOT_RESTARTED}" if hasattr(self, "_driver") else ""
            raise DeviceFault(f"driver {self._name}: {error!r}{way_out}", field="driver") from error
