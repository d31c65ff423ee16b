"""A device that plays a recorded run back: its readings are those of a log, in their order."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import torch
from torch import Tensor

from spu_link import wire
from spu_link.errors import BY_REASON, NotInLog
from spu_link.program import Program
from spu_server.drivers.base import Capabilities, Driver, DriverOptions, Measured
from spu_server.drivers.event_log import Blob, Log, LoggedCall

PLAYED = ("stage", "commit", "read", "halt")
"""Calls that must come in the order of the log. Windows open and close as their readings come and go."""


class Replay(Driver):
    """Answers the calls of a run as its log has them, without the device that it was recorded on.

    The calls must be those of the log: programs of the same size, damping, noise and start in the same order, with the
    readings between them; on a stepped clock at the same device times too. What the programs' tensors hold is not
    looked at. A call that does not fit is refused, and the log stays where it is.

    A run in which a state was restored cannot be played: this device cannot restore one.

    The log is named by the driver's option ``log``; it is the folder that ``spu-server serve --record`` made.
    """

    def __init__(self, options: DriverOptions) -> None:
        settings = dict(options.settings)
        path = settings.pop("log", None)
        if path is None or settings:
            raise ValueError(f"the replay driver has one option, log=FOLDER; it got {dict(options.settings) or 'none'}")
        self._log = Log.load(Path(path))
        header = self._log.header
        if options.clock != header.clock:
            raise ValueError(
                f"the log is of a {header.clock} clock, this device has a {options.clock} one; "
                f"serve it with --clock {header.clock}"
            )
        self._timed = header.clock == "stepped"
        self._events = deque(
            (number, event)
            for number, event in enumerate(self._log.events)
            # A program that was refused never reached the driver.
            if event.call in PLAYED and not (event.call == "stage" and event.refused)
        )
        recorded = header.capabilities
        features = tuple(name for name in recorded["features"] if name != "state")
        self._capabilities = Capabilities(
            "replay", recorded["cells"], recorded["max_bytes"], features, recorded["tau"], recorded["clock_tolerance"]
        )

    @property
    def capabilities(self) -> Capabilities:
        """Those of the device that was recorded, but for saving its state."""
        return self._capabilities

    def stage(self, program: Program) -> None:
        """Go on if the log's next program is like this one.

        Raises:
            NotInLog: when it is not.
        """
        number, event = self._next("stage")
        header = wire.parse_header(bytes(self._bytes(event.arguments[0])))
        layout = wire.layout(header, cells=self._capabilities.cells, max_bytes=self._capabilities.max_bytes)
        start = "tensor" if isinstance(program.start, Tensor) else program.start
        for field, actual, logged in (
            ("cells", program.cells, layout.cells),
            ("dtype", program.drive.dtype, layout.dtype),
            ("damping", program.damping, layout.damping),
            ("noise", program.noise, layout.noise),
            ("start", start, layout.start),
        ):
            if actual != logged:
                raise _misfit(number, f"program.{field}", actual, logged)
        self._advance()

    def commit(self, at: float) -> None:
        """Go on if a program takes effect here in the log.

        Raises:
            NotInLog: when none does.
        """
        number, event = self._next("commit")
        self._check_time(number, event, at)
        self._answer(event)

    def open_window(self, window: int, start: float) -> None:
        """Nothing to do: the average is in the log."""

    def close_window(self, window: int) -> None:
        """Nothing to do."""

    def read(self, at: float, window: int | None) -> Tensor | Measured:
        """The log's next reading.

        Raises:
            NotInLog: when something else comes next.
            SpuError: what the log has instead of a value.
        """
        number, event = self._next("read")
        self._check_time(number, event, at)
        averaged = {False: "the state itself", True: "an average"}
        asked, logged = averaged[window is not None], averaged[event.arguments[1] is not None]
        if asked != logged:
            raise _misfit(number, "window", asked, logged)
        self._answer(event)
        assert event.value is not None
        value = torch.frombuffer(self._bytes(event.value), dtype=getattr(torch, event.dtype))
        if event.taken is None:
            return value
        (planned, *_) = event.arguments
        assert isinstance(planned, float)
        return Measured(value, at + (event.taken - planned))

    def halt(self, at: float) -> None:
        """Stop; whatever comes next in the log, a halt is never refused."""
        if self._events and self._events[0][1].call == "halt":
            self._advance()

    def close(self) -> None:
        """Nothing to release."""

    def _next(self, call: str) -> tuple[int, LoggedCall]:
        if not self._events:
            raise NotInLog(f"the log has ended; {call} comes after it", field="call", found=call, expected="no call")
        number, event = self._events[0]
        if event.call != call:
            raise _misfit(number, "call", call, event.call)
        return number, event

    def _advance(self) -> None:
        self._events.popleft()

    def _answer(self, event: LoggedCall) -> None:
        """Remove an event whose call fits; fail as the recorded call did, if it did."""
        self._advance()
        if event.fault:
            raise RuntimeError(f"the log has a fault here: {event.fault}")
        if event.refused:
            raise BY_REASON[event.refused]("the recorded device refused this call", field=event.call)

    def _check_time(self, number: int, event: LoggedCall, at: float) -> None:
        if self._timed and at != event.arguments[0]:
            raise _misfit(number, "at", f"{at!r} τ", f"{event.arguments[0]!r} τ")

    def _bytes(self, blob: Blob | float | None) -> bytearray:
        assert isinstance(blob, Blob)
        return self._log.bytes_of(blob)


def _misfit(number: int, field: str, found: object, expected: object) -> NotInLog:
    return NotInLog(
        f"{field} is {found}, where the log has {expected} in its call {number}; the log stays there",
        field=field,
        found=found,
        expected=str(expected),
    )
