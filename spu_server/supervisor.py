"""Looks after a driver: watches its clock, and starts it again when it has failed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import structlog

from spu_link.errors import DeviceFault
from spu_server.device import Device
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.process import DriverProcess
from spu_server.drivers.watch import ClockWatch

log = structlog.get_logger(__name__)

WATCH_SECONDS = 0.5
"""Seconds between two looks at the device's own clock, while nothing else waits for the driver."""

RESTARTS = 8
"""Restarts in a row after which the device stays failed."""


@dataclass
class Backoff:
    """Pauses before restarts: each is twice as long as the last one.

    Attributes:
        first: pause before the first, in seconds.
        max_seconds: longest pause, in seconds.
        failures: in a row.
    """

    first: float = 0.1
    max_seconds: float = 10.0
    failures: int = 0

    def next(self, *, worked: bool) -> float | None:
        """Seconds to wait after a failure; None: no more restarts. A driver that has worked starts counting anew."""
        self.failures = 1 if worked else self.failures + 1
        return min(self.first * 2 ** (self.failures - 1), self.max_seconds) if self.failures <= RESTARTS else None


class Supervisor:
    """Watches over the driver of a device until it is cancelled.

    Args:
        device: the device.
        driver: its driver, started.
        calibrate: whether the device is calibrated after each restart.
    """

    def __init__(self, device: Device[Any], driver: DriverProcess, *, calibrate: bool) -> None:
        self._calibrate = calibrate
        self._device = device
        self._driver = driver
        self._failed = asyncio.Event()
        device.on_fault = self._failed.set

    async def run(self) -> None:
        """Watch, and restart what fails."""
        backoff, readings = Backoff(), 0
        while True:
            watching = asyncio.create_task(self._watch())
            try:
                await self._failed.wait()
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            while not await self._restart(backoff, worked=self._device.readings > readings):
                readings = self._device.readings
            readings = self._device.readings

    async def _restart(self, backoff: Backoff, *, worked: bool) -> bool:
        reason, seconds = self._device.fault, backoff.next(worked=worked)
        log.error("driver failed", reason=reason, failures=backoff.failures, restart_in_seconds=seconds)
        if seconds is None:
            self._device.give_up(f"{reason} (it has been restarted {RESTARTS} times in a row, and is left as it is)")
            await asyncio.Event().wait()
        await asyncio.sleep(seconds or 0.0)
        self._failed.clear()
        self._device.restarting()
        try:
            capabilities = await self._driver.restart()
            await self._device.examine(calibrate=self._calibrate)
        except DeviceFault as error:
            self._device.fail(error)
            return False
        if self._failed.is_set():  # it died just after that
            return False
        self._device.note_restart(capabilities)
        log.info("driver restarted", driver_pid=self._driver.pid, restarts=self._device.restarts)
        return True

    async def _watch(self) -> None:
        """Compare clocks, as long as the device has one of its own."""
        watch = ClockWatch(self._device.capabilities.clock_tolerance)
        while True:
            if not self._driver.busy:
                before = time.monotonic()
                try:
                    device = await self._driver.call(CheckedDriver.clock)
                except DeviceFault as error:
                    self._device.fail(error)
                    return
                if device is None:
                    return
                if wrong := watch.compare(before, device, time.monotonic()):
                    self._driver.condemn(wrong)
                    return
            await asyncio.sleep(WATCH_SECONDS)
