"""When an answer is due."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spu_server.drivers import deadline
from spu_server.drivers.deadline import Deadline


class Time:
    """A clock that a test moves, and the time that a process, or this one, has waited for a processor."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self._folder = folder
        for process in ("1", "self"):
            self.wait(5.0, process)

    def wait(self, seconds: float, process: str = "1") -> None:
        (self._folder / process).write_text(f"123456 {round(seconds * 1e9)} 7\n")


@pytest.fixture
def time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time(tmp_path)
    opened = os.open
    monkeypatch.setattr(deadline.time, "monotonic", lambda: time.now)
    monkeypatch.setattr(deadline.os, "open", lambda path, flags: opened(tmp_path / Path(path).parts[2], flags))
    return time


@pytest.fixture
def due(time: Time) -> Iterator[Deadline]:
    one = Deadline(1)
    yield one
    one.close()


def test_an_answer_is_due_so_long_after_the_call(due: Deadline, time: Time) -> None:
    due.begin(1.5)
    time.now += 1.0
    assert due.seconds_left() == pytest.approx(0.5)
    assert due.allowed == pytest.approx(1.5)


def test_what_is_announced_counts_from_then_on_and_only_for_one_call(due: Deadline, time: Time) -> None:
    due.begin(1.5)
    time.now += 1.0
    due.extend(3.0)
    due.extend(0.1)
    assert due.seconds_left() == pytest.approx(3.0)
    assert due.allowed == pytest.approx(4.0)
    due.end()
    due.begin(1.5)
    assert due.seconds_left() == pytest.approx(1.5)


def test_work_that_was_announced_before_the_call_is_waited_for(due: Deadline, time: Time) -> None:
    due.extend(10.0)
    time.now += 2.0
    due.begin(1.5)
    assert due.seconds_left() == pytest.approx(8.0)


@pytest.mark.parametrize("process", ["1", "self"])
def test_waiting_for_a_processor_does_not_count(due: Deadline, time: Time, process: str) -> None:
    due.begin(1.5)
    time.now += 4.0
    time.wait(8.0, process)
    assert due.seconds_left() == pytest.approx(0.5)


def test_where_nobody_counts_all_time_does(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str, flags: int) -> int:
        raise FileNotFoundError(path)

    monkeypatch.setattr(deadline.os, "open", missing)
    due = Deadline(1)
    due.begin(1.5)
    time.now += 2.0
    assert due.seconds_left() == pytest.approx(-0.5)
    due.close()
