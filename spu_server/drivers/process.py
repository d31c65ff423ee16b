"""A driver in a process of its own: heavy algebra or a crash there never stalls or kills the daemon."""

from __future__ import annotations

import asyncio
import mmap
import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spu_link import wire
from spu_link.errors import DeviceFault, SpuError
from spu_server.drivers.base import Capabilities, Driver, DriverOptions
from spu_server.drivers.port import DriverPort
from spu_server.drivers.registry import open_driver
from spu_server.memory import SharedBytes
from tngd.spu.v1 import spu_pb2 as pb

START_SECONDS = 60.0
"""Longest that a driver may take to open its device."""

CALL_SECONDS = 600.0
"""Longest that one call of a driver may take before the driver counts as hung."""

STOP_SECONDS = 1.0
"""Longest that a driver may take to close before it is killed."""


class DriverProcess(DriverPort[SharedBytes]):
    """The daemon's end: the driver's calls, awaitable.

    Args:
        name: entry point of the driver.
        options: what the driver is opened with.
    """

    def __init__(self, name: str, options: DriverOptions) -> None:
        self._name = name
        self._options = options
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"driver-{name}")
        self._fault = ""

    async def start(self) -> Capabilities:
        """Start the process and open the device.

        Raises:
            DeviceFault: with the driver's own words, when it cannot be opened.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._name, self._options)
        self._process = context.Process(target=_serve, args=arguments, name=f"spu-driver-{self._name}", daemon=True)
        self._process.start()
        theirs.close()
        asyncio.get_running_loop().add_reader(self._process.sentinel, self._ended)
        capabilities: Capabilities = await self._run(self._answer, START_SECONDS)
        return capabilities

    def _ended(self) -> None:
        """The process has ended without being told to: say so at once, not when it is next called."""
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._noting = asyncio.ensure_future(self._note_end())

    async def _note_end(self) -> None:
        with suppress(DeviceFault):
            await self._run(self._answer, STOP_SECONDS)

    @property
    def pid(self) -> int:
        """Process id of the driver's process."""
        assert self._process.pid is not None
        return self._process.pid

    async def stage(self, header: pb.ProgramHeader, payload: SharedBytes) -> None:
        """Map the payload in the driver's process, verify every value and stage the program."""
        await self._run(self._stage, header, payload)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call one of the driver's methods."""
        return await self._run(self._read if method == "read" else self._call, method, *arguments)

    async def close(self) -> None:
        """Close the device and end the process; a process that does not end is killed."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._process.sentinel)
        if self._process.is_alive() and not self._fault:
            with suppress(OSError):  # it has ended just now
                self._connection.send(("close", ()))
        await loop.run_in_executor(None, self._process.join, STOP_SECONDS)
        self._process.kill()
        await loop.run_in_executor(None, self._process.join)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._connection.close()

    async def _run(self, function: Any, *arguments: Any) -> Any:
        if self._fault:
            raise DeviceFault(self._fault, field="driver", found=self._name)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except DeviceFault as error:
            self._fault = error.message
            self._process.kill()
            self.on_fault(error)
            raise

    def _call(self, method: str, *arguments: Any) -> Any:
        with self._connected():
            self._connection.send((method, arguments))
        return self._answer(CALL_SECONDS)

    def _stage(self, header: pb.ProgramHeader, payload: SharedBytes) -> None:
        with self._connected():
            self._connection.send(("stage", (header.SerializeToString(), payload.nbytes)))
            send_handle(self._connection, payload.fileno(), self.pid)
        self._answer(CALL_SECONDS)

    def _read(self, method: str, *arguments: Any) -> Tensor:
        dtype, count = self._call(method, *arguments)
        value = np.empty(count, dtype=dtype)
        with self._connected():
            self._connection.recv_bytes_into(value.data.cast("B"))
        return torch.from_numpy(value)

    def _answer(self, seconds: float) -> Any:
        with self._connected():
            if not self._connection.poll(seconds):
                raise DeviceFault(f"driver {self._name} gave no answer within {seconds:g} s", field="driver")
            kind, value = self._connection.recv()
        if kind == "refused":
            raise value
        if kind == "fault":
            raise DeviceFault(f"driver {self._name}: {value}", field="driver")
        return value

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


def _serve(connection: Connection, name: str, options: DriverOptions) -> None:
    """The driver's end: open the device, then answer calls until the daemon closes or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the daemon as well, which then closes us
    try:
        driver = open_driver(name, options)
    except Exception as error:  # noqa: BLE001 - goes to the daemon in the driver's own words
        connection.send(("fault", f"could not be opened: {error!r}"))
        return
    connection.send(("ok", driver.capabilities))
    try:
        while True:
            method, arguments = connection.recv()
            if method == "close":
                return
            _answer_call(connection, driver, method, arguments)
            if method == "commit" and not connection.poll():
                driver.prepare()
    except (EOFError, ConnectionError):
        pass  # the daemon is gone, so nobody is left to measure for
    finally:
        driver.close()


def _answer_call(connection: Connection, driver: Driver, method: str, arguments: tuple[Any, ...]) -> None:
    try:
        if method == "stage":
            header, nbytes = arguments
            with open(recv_handle(connection), "r+b") as file:
                memory = mmap.mmap(file.fileno(), nbytes, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
            program = wire.program_from(pb.ProgramHeader.FromString(header), memoryview(memory))
            program.check_values()
            driver.stage(program)
            connection.send(("ok", None))
        elif method == "read":
            value = driver.read(*arguments).numpy()
            connection.send(("ok", (value.dtype.str, len(value))))
            connection.send_bytes(value.data.cast("B"))
        else:
            connection.send(("ok", getattr(driver, method)(*arguments)))
    except SpuError as error:
        connection.send(("refused", error))
    except Exception:  # noqa: BLE001 - any other failure is the device's fault, told in full
        connection.send(("fault", traceback.format_exc(limit=-5)))
