"""Between uploaded bytes and a driver."""

from __future__ import annotations

import math
from typing import Any

import torch

from spu_link import wire
from spu_link.errors import DeviceFault
from spu_link.program import Program
from spu_link.values import all_finite
from spu_server.drivers.base import Driver, Measured, measured
from spu_server.dynamics.effort import most_seconds
from spu_server.saved import Standing, decode, encode
from tngd.spu.v1 import spu_pb2 as pb


class Loader:
    """Makes verified programs of bytes, and knows which operator the device holds.

    Args:
        driver: the device's.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._staged: Program | None = None
        self._running: Program | None = None

    def stage(self, header: pb.ProgramHeader, memory: memoryview) -> None:
        """Verify every value of a program that has not been verified, and stage it with its readings.

        Raises:
            InvalidProgram: when a value is not what it must be.
            OperatorGone: when it keeps the running program's operator, and none runs.
        """
        program = wire.program_from(header, memory, self._running)
        self._driver.announce(most_seconds(program.operator))
        if wire.kept_of(header):
            program.check_vectors()
        else:
            program.check_values()
        self._driver.stage(program)
        self._driver.schedule([(read.after, read.window) for read in header.reads])
        self._staged = program

    def save(self, at: float, standing: Standing) -> bytes:
        """The device's whole state at device time `at`, as bytes."""
        saved = self._driver.save(at)
        if saved.program is not None:
            self._driver.announce(most_seconds(saved.program.operator))
        return encode(saved, standing, self._driver.capabilities.name)

    def restore(self, data: bytes | bytearray | memoryview) -> Standing:
        """Verify a saved state and stage it; how the device stood.

        Raises:
            InvalidProgram: when it is not one of this driver.
        """
        saved, standing = decode(data, self._driver.capabilities.name, self._driver.capabilities.cells)
        if saved.program is not None:
            self._driver.announce(most_seconds(saved.program.operator))
        self._driver.restore(saved)
        self._staged = saved.program
        return standing

    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of the driver's methods other than those that programs and states come and go by.

        Raises:
            DeviceFault: when it returns a reading that cannot be one.
        """
        result = getattr(self._driver, method)(*arguments)
        if method == "read":
            self._check_reading(measured(result, arguments[0]))
        if method == "commit":
            self._running, self._staged = self._staged, None
        elif method == "halt":
            self._running = self._staged = None
        return result

    def _check_reading(self, reading: Measured) -> None:
        """Refuse a reading that cannot be the cells' state."""
        assert self._running is not None, "a driver measured without a program"
        value, drive = reading.value, self._running.drive
        if value.shape != drive.shape or value.dtype != drive.dtype:
            wrong = f"of shape {tuple(value.shape)} and {value.dtype}; expected {tuple(drive.shape)} and {drive.dtype}"
        elif not (all_finite(value) and math.isfinite(reading.time)):
            wrong = f"with {int((~torch.isfinite(value)).sum())} values that are not finite, taken at {reading.time} τ"
        else:
            return
        raise DeviceFault(f"the driver returned a reading {wrong}", field="driver", expected="a state")
