"""A driver on a thread of this process, for a device without a daemon."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from spu_link.errors import DeviceFault, SpuError
from spu_server.drivers.base import Capabilities, Driver, DriverOptions
from spu_server.drivers.loader import Loader
from spu_server.drivers.port import DriverPort
from spu_server.drivers.registry import open_driver
from spu_server.saved import Standing
from tngd.spu.v1 import spu_pb2 as pb

T = TypeVar("T")

NOT_RESTARTED = "a driver in this process is not started again: close this connection and open another"
"""Remedy in a fault after the device has been opened; a daemon starts its driver again by itself."""


class LocalDriver(DriverPort[memoryview]):
    """The driver's calls on one thread: the event loop stays free while it computes."""

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
        self._loader = Loader(self._driver)
        return self._driver.capabilities

    def _open(self) -> None:
        self._driver = open_driver(self._name, self._options)

    def _give_up(self) -> None:
        """Close the device, should it have been opened for a caller who had gone by then."""
        if hasattr(self, "_driver"):
            self._driver.close()

    async def stage(self, header: pb.ProgramHeader, payload: memoryview) -> None:
        """Verify every value of a program and stage it."""
        await self._run(self._loader.stage, header, payload)

    async def save(self, at: float, standing: Standing) -> memoryview:
        """The device's whole state, as bytes."""
        return memoryview(await self._run(self._loader.save, at, standing))

    async def restore(self, payload: memoryview) -> Standing:
        """Verify a saved state and stage it."""
        return await self._run(self._loader.restore, payload)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call one of the driver's methods."""
        result = await self._run(self._loader.call, method, *arguments)
        if method == "commit":
            self._preparation = self._thread.submit(self._driver.prepare)
        return result

    async def close(self) -> None:
        """Close the device and end the thread."""
        if threading.main_thread().is_alive():
            await self._run(self._driver.close)
        else:  # the process exits, and all executors' threads have ended
            self._driver.close()
        self._thread.shutdown()
        del self._driver, self._loader  # whoever keeps a closed device keeps no program

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
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
