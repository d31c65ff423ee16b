"""Replay of a run from its log: the same calls of the same driver, and whether they give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spu_link import wire
from spu_link.aligned import aligned_copy
from spu_link.errors import LogUnusable, SpuError
from spu_server.drivers.base import DriverOptions, measured
from spu_server.drivers.event_log import Blob, Log, LoggedCall, machine, versions
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.registry import open_driver


@dataclass(frozen=True)
class Difference:
    """The first difference between a replayed run and its log.

    Attributes:
        event: number of the call in the log, from 0.
        reading: number of the reading, from 1; 0 if the call is none.
        time: its device time, in τ.
        what: what is different, in words.
        size: largest difference of two elements of a reading; None where there is none to take.
        relative: the same over the largest element in the log.
    """

    event: int
    reading: int
    time: float
    what: str
    size: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of a replay.

    Attributes:
        calls: calls made.
        readings: readings in the log, up to its end.
        same: readings that came out the same bit for bit.
        first: the first call that did not come out as in the log; None if all did.
        closed: whether the log ends with the end of the run.
        remarks: what the reader of a difference should know.
    """

    calls: int
    readings: int
    same: int
    first: Difference | None
    closed: bool
    remarks: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """True if everything came out as in the log, bit for bit."""
        return self.first is None and self.same == self.readings


def replay(log: Log, progress: Callable[[int], object] = lambda made: None) -> Outcome:
    """Replay the calls of a log, in their order, with a driver opened as it was then.

    Calls that failed for the driver's own fault are left out. `Driver.prepare` is not called: no bits depend on it.

    Args:
        log: the log.
        progress: called with the number of events that are done, now and then at least.

    Raises:
        LogUnusable: when the log is damaged, or its driver is not installed here.
        DriverUnusable: when the driver is installed and cannot be used.
    """
    run = _Run(log)
    with _threads(log.header.machine.get("threads")):
        try:
            for number, event in enumerate(log.events):
                with _report_unusable(log, number, event):
                    if not run.make(number, event):
                        break
                progress(number + 1)
        finally:
            run.close()
    return Outcome(run.calls, run.readings, run.same, run.first, log.closed, tuple(_remarks(log)))


@contextmanager
def _report_unusable(log: Log, number: int, event: LoggedCall) -> Iterator[None]:
    """Raise `LogUnusable` for a call that cannot be made from the log; failures of the driver are caught before."""
    try:
        yield
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise LogUnusable(f"{log.folder}: call {number + 1}, {event.call!r}, cannot be replayed: {error}") from error


class _Run:
    """The run as far as it has been replayed."""

    def __init__(self, log: Log) -> None:
        self.calls = self.readings = self.same = 0
        self.first: Difference | None = None
        self._log = log
        self._driver: CheckedDriver | None = None
        self._close: Callable[[], object] = lambda: None

    def make(self, number: int, event: LoggedCall) -> bool:
        """Replay one call; return False if the run cannot go on."""
        if event.call == "start":
            self.close()
            driver = open_driver(self._log.header.driver, DriverOptions(**self._log.header.options))
            self._driver, self._close = CheckedDriver(driver), driver.close
            return True
        if event.call in ("close", "fault") or event.fault:
            return True
        self.calls += 1
        self.readings += event.dtype != ""
        refused, value = "", None
        call = self._prepare(event)
        try:
            value = call()
        except SpuError as error:
            refused = error.reason()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is its fault, and none is in the log
            self._differs(number, event, f"the driver failed with {error!r}")
            return False
        if refused != event.refused:
            self._differs(number, event, f"{_answer(refused)} where the log has {_answer(event.refused)}")
        elif event.value is not None:
            self._compare(number, event, event.value, value)
        return True

    def close(self) -> None:
        """Close the driver."""
        self._close()
        self._driver, self._close = None, lambda: None

    def _prepare(self, event: LoggedCall) -> Callable[[], Any]:
        """Return the call, with its arguments."""
        assert self._driver is not None, "a log begins with the opening of the driver"
        arguments: list[Any] = [self._log.bytes_of(a) if isinstance(a, Blob) else a for a in event.arguments]
        if event.call == "stage":
            arguments = [bytes(arguments[0]), aligned_copy(arguments[1])]
        return partial(vars(CheckedDriver)[event.call], self._driver, *arguments)

    def _compare(self, number: int, event: LoggedCall, expected: Blob, value: Any) -> None:
        asked = event.arguments[0]
        assert isinstance(asked, float), "the device time of a reading"
        value, taken = measured(value, asked)
        then = asked if event.taken is None else event.taken
        logged = torch.frombuffer(self._log.bytes_of(expected), dtype=getattr(torch, event.dtype))
        if taken != then:
            self._differs(number, event, f"taken at {taken} τ, in the log at {then} τ")
        elif _bits(value) == _bits(logged):
            self.same += 1
        else:
            self._note(_measure(self._difference(number, event, ""), logged, value))

    def _differs(self, number: int, event: LoggedCall, what: str) -> None:
        self._note(self._difference(number, event, f"{event.call}: {what}"))

    def _difference(self, number: int, event: LoggedCall, what: str) -> Difference:
        at = event.arguments[0] if event.call == "read" else event.time
        assert isinstance(at, float), "the device time of a reading"
        return Difference(number, self.readings if event.dtype else 0, at, what)

    def _note(self, difference: Difference) -> None:
        self.first = self.first or difference


def _bits(value: Tensor) -> tuple[torch.dtype, memoryview]:
    return value.dtype, wire.byte_views([value])[0]


def _measure(difference: Difference, logged: Tensor, value: Tensor) -> Difference:
    if (logged.dtype, logged.shape) != (value.dtype, value.shape):
        now, then = (f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in (value, logged))
        return replace(difference, what=f"a reading of {now} where the log has {then}")
    size = float((value - logged).abs().max())
    largest = float(logged.abs().max())
    relative = size / largest if largest else float("inf")
    return replace(difference, what="the reading's values", size=size, relative=relative)


def _answer(refused: str) -> str:
    return f"refused with {refused}" if refused else "done"


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """As many threads as then: they decide about the order in which a sum's terms are added."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _remarks(log: Log) -> Iterator[str]:
    """Return the difference from the log, in words."""
    if not log.closed:
        yield "the log has no end: its daemon was killed, could not go on writing, or still runs"
    for name, then in log.header.versions.items():
        now = versions().get(name)
        if now != then and name != "python":
            yield f"recorded with {name} {then}, replayed with {now}: the last bits may differ"
    here = machine()
    for name in sorted({*log.header.machine, *here} - {"threads"}):
        then, now = log.header.machine.get(name, "unset"), here.get(name, "unset")
        if then != now:
            yield f"recorded with {name} {then}, replayed with {now}: the last bits may differ"
