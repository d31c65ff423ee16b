"""A device's event log: every call of its driver in order, with its device time, arguments and result.

With the driver's seed the log is the run: replaying the calls reproduces the readings (`spu_server.replay`).

A log is a folder of three files, which are only ever added to:

- ``log.json``: what the driver was opened with, clock, epoch, versions and machine (`Header`);
- ``events.jsonl``: a line for each call, written when it has returned;
- ``data.bin``: bytes of uploads and readings, one after the other; lines refer to them by place and CRC-32C.

Bytes are written before the line that refers to them, so a log whose writer was killed is whole up to its last line.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from spu_link.errors import LogUnusable
from spu_server.clock import Clock
from spu_server.descriptors import read_all, write_all
from spu_server.drivers.base import Capabilities, DriverOptions
from spu_server.drivers.log_folder import HEADER, only_log
from spu_server.version import VERSION

FORMAT = 1
"""Version of the format."""

EVENTS, DATA = "events.jsonl", "data.bin"

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that decide how many threads share a sum, and so in which order its terms are added."""


@dataclass(frozen=True)
class Header:
    """The settings that a run began with.

    Attributes:
        driver: name of the driver.
        options: those that it was opened with, by name.
        capabilities: what it then could do, by name.
        clock: ``"free"`` or ``"stepped"``.
        rate: τ per second of wall time; 0 on a stepped clock.
        epoch: identity of the run.
        began: wall-clock time of its begin, for people.
        versions: of what computes.
        machine: processor and threads, which decide about the last bits of a sum.
        format: version of the format.
    """

    driver: str
    options: dict[str, Any]
    capabilities: dict[str, Any]
    clock: str
    rate: float
    epoch: int
    began: str
    versions: dict[str, str]
    machine: dict[str, Any]
    format: int = FORMAT

    @classmethod
    def of(cls, driver: str, options: DriverOptions, capabilities: Capabilities, clock: Clock, epoch: int) -> Header:
        """The header of a run that begins now, on this machine."""
        began = datetime.fromtimestamp(epoch / 1e9, UTC).isoformat(timespec="milliseconds")
        given, able = options.model_dump(), asdict(capabilities)
        return cls(driver, given, able, clock.kind, clock.rate, epoch, began, versions(), machine())


@dataclass(frozen=True)
class Blob:
    """Bytes in the log's data.

    Attributes:
        offset: where they begin.
        nbytes: how many they are.
        crc32c: their checksum.
    """

    offset: int
    nbytes: int
    crc32c: int


@dataclass(frozen=True)
class LoggedCall:
    """A call of the driver.

    Attributes:
        call: name of the driver's method; ``"start"`` when the driver has been opened, ``"close"`` when it is closed.
        time: device time at which it was made, in τ.
        arguments: numbers, None, and blobs.
        value: the reading that it returned; None if it returned nothing.
        dtype: element type of the reading.
        taken: device time at which the device did take a reading that it could not take when asked, in τ; else None.
        refused: reason of the driver's refusal; empty if there was none.
        fault: what failed; empty if nothing did.
    """

    call: str
    time: float
    arguments: tuple[float | int | Blob | None, ...] = ()
    value: Blob | None = None
    dtype: str = ""
    taken: float | None = None
    refused: str = ""
    fault: str = ""

    def line(self) -> str:
        """As one line of JSON, without what is as usual."""
        usual = {name: default for name, default in _DEFAULTS.items() if getattr(self, name) == default}
        fields = {name: value for name, value in asdict(self).items() if name not in usual}
        return json.dumps(fields, separators=(",", ":"), allow_nan=True)

    @classmethod
    def parse(cls, line: str) -> LoggedCall:
        """Return the event of a line.

        Raises:
            ValueError: for a line that is none.
        """
        return _EVENT.validate_python(json.loads(line))


_EVENT, _HEADER = TypeAdapter(LoggedCall), TypeAdapter(Header)

_DEFAULTS = {"arguments": (), "value": None, "dtype": "", "taken": None, "refused": "", "fault": ""}


class LogWriter:
    """Adds to a new log.

    Args:
        parent: folder for logs; this one becomes a folder in it, named by the time of its begin.
        header: what the run began with.

    Attributes:
        folder: the log's own folder.

    Raises:
        LogUnusable: when the files cannot be made.
    """

    def __init__(self, parent: Path, header: Header) -> None:
        self.folder = parent / f"{datetime.fromtimestamp(header.epoch / 1e9, UTC):%Y%m%d-%H%M%S-%f}"
        self._end = 0
        try:
            self.folder.mkdir(parents=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._data = os.open(self.folder / DATA, flags, 0o600)
            self._events = os.open(self.folder / EVENTS, flags | os.O_APPEND, 0o600)
            (self.folder / HEADER).write_text(json.dumps(asdict(header), indent=1))
        except OSError as error:
            raise LogUnusable(f"no log can be written in {parent}: {error}") from error

    def put(self, pieces: Iterable[bytes]) -> Blob:
        """Store bytes; to be followed by an event that refers to them.

        Raises:
            OSError: when they cannot be written, for instance because the disk is full.
        """
        begin, crc = self._end, 0
        for piece in pieces:
            write_all(self._data, piece, self._end)
            crc = google_crc32c.extend(crc, piece)
            self._end += len(piece)
        return Blob(begin, self._end - begin, crc)

    def add(self, event: LoggedCall) -> None:
        """Add a line.

        Raises:
            OSError: when it cannot be written.
        """
        line = memoryview(event.line().encode() + b"\n")
        while line:
            line = line[os.write(self._events, line) :]

    def close(self) -> None:
        """Close the files."""
        os.close(self._data)
        os.close(self._events)


@dataclass
class Log:
    """A log that has been written, or is being written.

    Attributes:
        folder: its folder.
        header: what the run began with.
        events: the calls up to now.
    """

    folder: Path
    header: Header
    events: Sequence[LoggedCall] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Log:
        """Read a log.

        Args:
            path: its folder, or one with this log alone.

        Raises:
            LogUnusable: when there is none, or more than one, or when its lines are not what they must be.
        """
        folder = only_log(path)
        try:
            fields = json.loads((folder / HEADER).read_text())
            if isinstance(fields, dict) and fields.get("format") != FORMAT:
                raise LogUnusable(f"{folder} has format {fields.get('format')}; this version reads {FORMAT}")
            header = _HEADER.validate_python(fields)
            lines = (folder / EVENTS).read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the last one may have been broken off
            events = [LoggedCall.parse(line) for line in whole]
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "a line"
            raise LogUnusable(f"{folder} is damaged: {field}: {first['msg'].lower()}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise LogUnusable(f"{folder} cannot be read: {error}") from error
        if events and events[0].call != "start":
            raise LogUnusable(
                f"{folder} is damaged: it begins with {events[0].call!r}, not with the opening of a driver"
            )
        return cls(folder, header, events)

    @property
    def closed(self) -> bool:
        """True if the run ended in order; else its writer was killed, stopped recording, or is at work."""
        return bool(self.events) and self.events[-1].call == "close"

    def bytes_of(self, blob: Blob) -> bytearray:
        """Bytes from the data.

        Raises:
            LogUnusable: when they are not those that were written.
        """
        buffer = bytearray(blob.nbytes)
        try:
            with (self.folder / DATA).open("rb") as file:
                read_all(file.fileno(), memoryview(buffer), blob.offset)
        except (OSError, EOFError) as error:
            raise LogUnusable(f"{self.folder / DATA} cannot be read at {blob.offset}: {error}") from error
        if google_crc32c.value(bytes(buffer)) != blob.crc32c:
            raise LogUnusable(f"{self.folder / DATA} is damaged: the checksum at {blob.offset} is not the one written")
        return buffer


def versions() -> dict[str, str]:
    """Versions of what computes here."""
    known = {"tngd-spu": VERSION, "torch": str(torch.__version__), "numpy": np.__version__, "scipy": version("scipy")}
    return known | {"python": platform.python_version()}


def machine() -> dict[str, Any]:
    """Return everything here that decides in which order a sum's terms are added."""
    return {
        "system": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **{name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }
