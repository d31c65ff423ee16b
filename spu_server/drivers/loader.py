"""Between uploaded bytes and a driver."""

from __future__ import annotations

from typing import Any

from spu_link import wire
from spu_link.program import Program
from spu_server.drivers.base import Driver
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
        if wire.kept_of(header):
            program.check_vectors()
        else:
            program.check_values()
        self._driver.stage(program)
        self._driver.schedule([(read.after, read.window) for read in header.reads])
        self._staged = program

    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of the driver's methods other than `stage`."""
        result = getattr(self._driver, method)(*arguments)
        if method == "commit":
            self._running, self._staged = self._staged, None
        elif method == "halt":
            self._running = self._staged = None
        return result
