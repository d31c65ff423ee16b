"""A driver as the device sees it: the same calls, awaitable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from spu_link.errors import DeviceFault
from spu_server.drivers.base import Measured, measured
from spu_server.saved import Standing
from tngd.spu.v1 import spu_pb2 as pb

P = TypeVar("P")


class DriverPort(ABC, Generic[P]):
    """Calls of a `Driver`, one at a time, in the order they are made, off the event loop.

    P is what carries the bytes of an upload. Every call raises `DeviceFault` when the driver fails.

    Attributes:
        on_fault: called, on the event loop, when the driver fails by itself, with no call under way.
    """

    on_fault: Callable[[DeviceFault], None] = staticmethod(lambda error: None)

    @abstractmethod
    async def stage(self, header: pb.ProgramHeader, payload: P) -> None:
        """Verify every value of a program and stage it.

        Raises:
            InvalidProgram: when a value is not what it must be.
        """

    @abstractmethod
    async def save(self, at: float, standing: Standing) -> P:
        """The device's whole state at device time `at`, as bytes that belong to the caller."""

    @abstractmethod
    async def restore(self, payload: P) -> Standing:
        """Verify a saved state and stage it; return the status that the device had.

        Raises:
            InvalidProgram: when it is not one of this driver.
        """

    @abstractmethod
    async def call(self, method: str, *arguments: Any) -> Any:
        """Call one of the driver's methods."""

    async def commit(self, at: float) -> None:
        """Apply the staged program."""
        await self.call("commit", at)

    async def open_window(self, window: int, start: float) -> None:
        """Begin a time average."""
        await self.call("open_window", window, start)

    async def close_window(self, window: int) -> None:
        """Forget a time average."""
        await self.call("close_window", window)

    async def read(self, at: float, window: int | None) -> Measured:
        """Measure."""
        return measured(await self.call("read", at, window), at)

    async def report(self) -> Mapping[str, float]:
        """Return counts and measurements of the device, by name."""
        report: Mapping[str, float] = await self.call("report")
        return report

    async def self_test(self) -> str:
        """Return what an idle device's self-test finds; empty if nothing."""
        found: str = await self.call("self_test")
        return found

    async def calibrate(self) -> None:
        """Let an idle device measure and correct its own errors."""
        await self.call("calibrate")

    async def halt(self, at: float) -> None:
        """Drop all programs and discharge the cells."""
        await self.call("halt", at)

    def restarted(self) -> None:
        """Learn that the driver has failed and been opened again: nothing is in force."""
