"""The driver's end of a driver in a separate process: calls come over a connection, and so do their answers.

A call is ``(method, arguments)``, with a descriptor behind it where one is needed. A message back is ``(kind, value)``:
``"ok"`` with a result, ``"refused"`` with an error for the client, ``"fault"`` with a failure in words, or `DUE`.
"""

from __future__ import annotations

import mmap
import os
import signal
import traceback
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

from spu_link.aligned import aligned, aligned_copy
from spu_link.errors import SpuError
from spu_link.tuning import settle_process
from spu_server.descriptors import read_all, write_all
from spu_server.drivers.base import Driver, DriverOptions, measured
from spu_server.drivers.loader import Loader
from spu_server.drivers.registry import open_driver
from tngd.spu.v1 import spu_pb2 as pb

STAGE_BYTES, STAGE_FILE, STAGE_REGION = "stage bytes", "stage file", "stage region"
SAVE, RESTORE = "save", "restore"
REMEMBER, FORGET = "remember", "forget"
"""Calls that are not the driver's own: programs by where their bytes lie, states, and regions by number."""

DUE = "due"
"""Message of a driver that the call under way, or what it does unasked, takes so many seconds more."""

READINGS = -1
"""Number of the memory that readings come through; regions of clients have others."""


def serve(connection: Connection, name: str, options: DriverOptions, least_announced: float) -> None:
    """Open the device, then answer calls until the daemon closes or is gone.

    Args:
        connection: to the daemon.
        name: entry point of the driver.
        options: what it is opened with.
        least_announced: fewest seconds whose announcement is worth a message.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the daemon as well, which then closes us
    try:
        driver = open_driver(name, options)
    except Exception as error:  # noqa: BLE001 - goes to the daemon in the driver's own words
        connection.send(("fault", f"could not be opened: {type(error).__name__}: {error}"))
        return
    settle_process()
    driver.announce = partial(_announce, connection, least_announced)
    connection.send(("ok", driver.capabilities))
    loader = Loader(driver)
    regions: dict[int, int] = {}
    try:
        while True:
            method, arguments = connection.recv()
            if method == "close":
                return
            _answer_call(connection, loader, regions, method, arguments)
            if method == "commit" and not connection.poll():
                _prepare(connection, driver)
    except (EOFError, ConnectionError):
        pass  # the daemon is gone, so nobody is left to measure for
    finally:
        driver.close()


def _announce(connection: Connection, least: float, seconds: float) -> None:
    if seconds >= least:
        connection.send((DUE, seconds))


def _prepare(connection: Connection, driver: Driver) -> None:
    """Prepare the driver; nobody waits for it, so a failure is a message of its own."""
    try:
        driver.prepare()
    except Exception:  # noqa: BLE001 - any failure is the device's fault, reported in full
        connection.send(("fault", traceback.format_exc(limit=-5)))


def _answer_call(
    connection: Connection, loader: Loader, regions: dict[int, int], method: str, arguments: tuple[Any, ...]
) -> None:
    try:
        if method == STAGE_BYTES:
            header, data = arguments
            loader.stage(pb.ProgramHeader.FromString(header), aligned_copy(data))
            connection.send(("ok", None))
        elif method == STAGE_FILE:
            header, nbytes = arguments
            with open(recv_handle(connection), "r+b") as file:
                memory = mmap.mmap(file.fileno(), nbytes, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
            loader.stage(pb.ProgramHeader.FromString(header), memoryview(memory))
            connection.send(("ok", None))
        elif method == STAGE_REGION:
            header, number, offset, nbytes = arguments
            # A copy, made before any value is looked at: the client can still write to its region.
            buffer = aligned(nbytes)
            read_all(regions[number], buffer, offset)
            loader.stage(pb.ProgramHeader.FromString(header), buffer)
            connection.send(("ok", None))
        elif method == SAVE:
            with open(recv_handle(connection), "r+b") as file:
                data = loader.save(*arguments)
                write_all(file.fileno(), data, 0)
            connection.send(("ok", len(data)))
        elif method == RESTORE:
            with open(recv_handle(connection), "r+b") as file:
                state = bytearray(arguments[0])
                read_all(file.fileno(), memoryview(state), 0)
            connection.send(("ok", loader.restore(state)))
        elif method == REMEMBER:
            regions[arguments[0]] = recv_handle(connection)
            connection.send(("ok", None))
        elif method == FORGET:
            os.close(regions.pop(arguments[0]))
            connection.send(("ok", None))
        elif method == "read":
            tensor, time = measured(loader.call("read", *arguments), arguments[0])
            value = tensor.numpy()
            write_all(regions[READINGS], value.data.cast("B"), 0)
            connection.send(("ok", (value.dtype.str, len(value), time)))
        else:
            connection.send(("ok", loader.call(method, *arguments)))
    except SpuError as error:
        connection.send(("refused", error))
    except Exception:  # noqa: BLE001 - any other failure is the device's fault, reported in full
        connection.send(("fault", traceback.format_exc(limit=-5)))
