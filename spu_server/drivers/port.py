"""The daemon's end of a driver: its calls, awaitable, and where it is."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, TypeVarTuple

from spu_link.errors import DeviceFault, SpuError
from spu_server.drivers.base import Capabilities, Driver, DriverOptions, Measured
from spu_server.drivers.hosted import PREPARED_AFTER, CheckedDriver
from spu_server.drivers.registry import open_driver
from spu_server.drivers.saved import Standing

P = TypeVar("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

NOT_RESTARTED = "a driver in this process is not started again: close this connection and open another"
"""Remedy in a fault after the device has been opened; a daemon starts its driver again by itself."""


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
        """Make a call whose arguments and result are small; after a commit the driver works ahead."""

    @abstractmethod
    async def read(self, at: float, window: int | None) -> Measured:
        """Measure."""

    @abstractmethod
    async def halt(self, at: float) -> None:
        """Drop all programs and discharge the cells."""

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
            result = await self._run(method, self._checked, *arguments)
        except DeviceFault as error:
            self.on_fault(error)
            raise
        if method is PREPARED_AFTER:
            self._preparation = self._thread.submit(self._driver.prepare)
        return result

    async def read(self, at: float, window: int | None) -> Measured:
        """Measure."""
        return await self.call(CheckedDriver.read, at, window)

    async def halt(self, at: float) -> None:
        """Drop all programs and discharge the cells."""
        await self.call(CheckedDriver.halt, at)

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
            preparation = self._preparation
            if preparation is not None and preparation.done():  # else it is behind this call, and would wait for it
                self._preparation = None
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
