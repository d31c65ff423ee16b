"""The driver's end: its calls with everything checked, and how they come from the daemon to a separate process.

There a call is a method of `HostedDriver` and its arguments, over a connection, with a descriptor behind it where one
is needed. A message back is `Done`, `Due`, or an error: `DeviceFault` where the driver failed, else one that refuses
the call.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import NamedTuple, TypeAlias

import torch

from spu_link import wire
from spu_link.aligned import aligned, aligned_copy
from spu_link.errors import DeviceFault, SpuError
from spu_link.program import Program
from spu_link.tuning import settle_process
from spu_link.values import all_finite
from spu_server.descriptors import read_all, write_all
from spu_server.drivers.base import Driver, DriverOptions, Measured, measured
from spu_server.drivers.registry import open_driver
from spu_server.drivers.saved import Standing, decode, encode
from spu_server.dynamics.effort import max_seconds

READINGS = -1
"""Number of the memory that readings come through; regions of clients have others."""


class Done(NamedTuple):
    """The result of a call, or of opening the device."""

    result: object


class Due(NamedTuple):
    """The seconds more that the call under way takes, or what the driver does unasked."""

    seconds: float


Message: TypeAlias = Done | Due | SpuError


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


PREPARED_AFTER: Callable[..., object] = CheckedDriver.commit
"""The call after which a driver works ahead, until the next one."""


class HostedDriver(CheckedDriver):
    """A driver whose large arguments and results lie in memory of which descriptors come over the connection."""

    def __init__(self, driver: Driver, connection: Connection) -> None:
        super().__init__(driver)
        self._connection = connection
        self._regions: dict[int, int] = {}

    def stage_via_message(self, header: bytes, data: bytes) -> None:
        """Stage a program whose bytes came with the call."""
        self.stage(header, aligned_copy(data))

    def stage_via_file(self, header: bytes, nbytes: int) -> None:
        """Stage a program whose bytes lie in a file of its own."""
        with open(recv_handle(self._connection), "r+b") as file:
            memory = mmap.mmap(file.fileno(), nbytes, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        self.stage(header, memoryview(memory))

    def stage_via_region(self, header: bytes, number: int, offset: int, nbytes: int) -> None:
        """Stage a program whose bytes lie in a region: a copy, as the client can still write to it."""
        buffer = aligned(nbytes)
        read_all(self._regions[number], buffer, offset)
        self.stage(header, buffer)

    def save_via_file(self, at: float, standing: Standing) -> int:
        """Write the device's state into a file; return the number of bytes."""
        with open(recv_handle(self._connection), "r+b") as file:
            data = self.save(at, standing)
            write_all(file.fileno(), data, 0)
        return len(data)

    def restore_via_file(self, nbytes: int) -> Standing:
        """Verify a state that lies in a file, and stage it."""
        with open(recv_handle(self._connection), "r+b") as file:
            state = bytearray(nbytes)
            read_all(file.fileno(), memoryview(state), 0)
        return self.restore(state)

    def read_via_memory(self, at: float, window: int | None) -> tuple[str, int, float]:
        """Measure; return element type, number and time of the values, which are written to the readings' memory."""
        tensor, time = self.read(at, window)
        value = tensor.numpy()
        write_all(self._regions[READINGS], value.data.cast("B"), 0)
        return value.dtype.str, len(value), time

    def remember(self, number: int) -> None:
        """Receive the descriptor of a region."""
        self._regions[number] = recv_handle(self._connection)

    def forget(self, number: int) -> None:
        """Close the descriptor of a region."""
        os.close(self._regions.pop(number))


def serve(connection: Connection, name: str, options: DriverOptions, min_announced: float) -> None:
    """Open the device, then answer calls until the daemon sends None or is gone.

    Args:
        connection: to the daemon.
        name: entry point of the driver.
        options: those that it is opened with.
        min_announced: min seconds whose announcement is worth a message.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the daemon as well, which then closes us
    try:
        driver = open_driver(name, options)
    except Exception as error:  # noqa: BLE001 - goes to the daemon in the driver's own words
        connection.send(DeviceFault(f"driver {name}: could not be opened: {type(error).__name__}: {error}"))
        return
    settle_process()
    driver.announce = partial(_announce, connection, min_announced)
    connection.send(Done(driver.capabilities))
    hosted = HostedDriver(driver, connection)
    try:
        while (call := connection.recv()) is not None:
            method, arguments = call
            try:
                connection.send(Done(method(hosted, *arguments)))
            except SpuError as error:
                connection.send(error)
            except Exception:  # noqa: BLE001 - any other failure is the device's fault
                connection.send(_fault(name))
            if method is PREPARED_AFTER and not connection.poll():
                try:
                    driver.prepare()
                except Exception:  # noqa: BLE001 - nobody waits for it, so this is a message of its own
                    connection.send(_fault(name))
    except (EOFError, ConnectionError):
        pass  # the daemon is gone, so nobody is left to measure for
    finally:
        driver.close()


def _announce(connection: Connection, min_seconds: float, seconds: float) -> None:
    if seconds >= min_seconds:
        connection.send(Due(seconds))


def _fault(name: str) -> DeviceFault:
    """Return the exception under way, in full."""
    return DeviceFault(f"driver {name}: {traceback.format_exc(limit=-5)}", field="driver")
