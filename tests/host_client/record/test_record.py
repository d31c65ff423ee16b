import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.clock import ClockAgreement, Exchange
from host_client.record import (
    ClockAgreed,
    Differentiated,
    Event,
    Read,
    RunRecord,
    UnreadableRecord,
    Updated,
    Uploaded,
    load,
)
from host_client.record.clocks import ClockNotes
from host_client.record.recorder import KINDS, VERSION
from tests.forked import Forked, script


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@given(events=st.lists(st.one_of([st.from_type(kind) for kind in KINDS.values()]), max_size=20))
def test_what_is_recorded_comes_back(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    folder = tmp_path_factory.mktemp("run")
    with RunRecord(folder, settings={"lr": 0.1}) as record:
        for event in events:
            record.record(event)
    found = load(folder)
    assert repr(found.events) == repr(tuple(events))  # repr, since nan differs from itself
    assert found.header["settings"] == {"lr": 0.1}
    assert found.notes == ()


def test_every_kind_of_event_has_a_name_in_the_file() -> None:
    assert set(KINDS.values()) == set(get_args(Event))


def test_the_header_relates_the_monotonic_clock_to_the_calendar(tmp_path: Path) -> None:
    before = time.time()
    with RunRecord(tmp_path):
        now = time.monotonic()
    assert before - 0.1 <= load(tmp_path).header["wall_clock_at_zero"] + now <= time.time() + 0.1


def test_an_event_is_in_the_file_when_record_returns(tmp_path: Path) -> None:
    with RunRecord(tmp_path / "new" / "folder") as record:
        record.record(Differentiated(0, 1.0, 2.0))
        assert lines(tmp_path / "new" / "folder")[1:] == [
            {"event": "Differentiated", "step": 0, "began": 1.0, "ended": 2.0}
        ]
    assert record.late == 0


def test_what_comes_after_the_end_is_counted_and_not_written(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as record:
        pass
    record.record(Differentiated(1, 2.0, 3.0))
    assert record.late == 1
    assert load(tmp_path).events == ()


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as record:

        def write(thread: int) -> None:
            for step in range(200):
                record.record(Differentiated(1000 * thread + step, 0.0, 1.0))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    steps = [event.step for event in load(tmp_path).of(Differentiated)]
    assert sorted(steps) == sorted(1000 * thread + step for thread in range(4) for step in range(200))
    for thread in range(4):  # each thread's in its own order
        own = [step for step in steps if step // 1000 == thread]
        assert all(a < b for a, b in itertools.pairwise(own))


def test_a_killed_process_leaves_what_it_had_recorded(tmp_path: Path) -> None:
    program = f"""
import pathlib, sys, time
from host_client.record import Differentiated, RunRecord
record = RunRecord(pathlib.Path({str(tmp_path)!r}))
for step in range(50):
    record.record(Differentiated(step, 0.0, 1.0))
print("written", flush=True)
time.sleep(60)
"""
    with Forked(script, program) as process:
        assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert [event.step for event in load(tmp_path).of(Differentiated)] == list(range(50))


def test_a_torn_last_line_is_skipped_with_a_note(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as record:
        for step in range(2):
            record.record(Updated(step, 1.0, 2.0, (), None, "gradient"))
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    found = load(tmp_path)
    assert [event.step for event in found.of(Updated)] == [0]
    assert "line 3, the last, is torn" in found.notes[0]


def test_kinds_and_fields_of_a_later_version_are_skipped_and_the_kinds_counted(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as record:
        record.record(Differentiated(0, 1.0, 2.0))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "Calibrated", "cell": 3}\n' * 2)
        file.write('{"event": "Differentiated", "step": 1, "began": 2.0, "ended": 3.0, "device": "cuda"}\n')
    found = load(tmp_path)
    assert found.events == (Differentiated(0, 1.0, 2.0), Differentiated(1, 2.0, 3.0))
    assert found.notes == ("2 events of an unknown kind 'Calibrated' were skipped",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no header"),
        ('{"format": 1', "no header"),
        ('{"a": 1}\n', "not the record of a run"),
        ("step,loss\n", "line 1, is not JSON"),
        (f'{{"format": {VERSION + 1}}}\n', "update it"),
        ('{"format": 1}\n', "record the run anew"),
        ('{"format": 4}\n[1]\n', "line 2, is '[1]'"),
        ('{"format": 4}\nx\n{"event": "Read"}\n', "line 2, is not JSON"),
        ('{"format": 4}\n{"event": "DeviceBack", "host": 1.0}\n', "line 2: DeviceBack lacks epoch"),
    ],
)
def test_what_is_not_a_record_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "events.jsonl").write_text(content)
    with pytest.raises(UnreadableRecord) as raised:
        load(tmp_path)
    assert said in str(raised.value)


def test_a_record_of_format_3_is_read_with_the_names_of_this_version(tmp_path: Path) -> None:
    old = '{"event": "Uploaded", "number": 1, "began": 1.0, "ended": 2.0, "outcome": "%s", "epoch": 5, "sequence": 7, '
    old += '"took_hold": 3.5, "nbytes": 8, "path": "grpc", "kept": false, "step": 1}'
    (tmp_path / "events.jsonl").write_text("\n".join(['{"format": 3}', old % "took hold", old % "failed", ""]))
    taken, failed = load(tmp_path).of(Uploaded)
    assert (taken.outcome, taken.took_effect) == ("took effect", 3.5)
    assert (failed.outcome, failed.took_effect) == ("failed", 3.5)


def test_a_folder_without_a_record_says_how_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(UnreadableRecord, match="tngd train"):
        load(tmp_path)


def test_an_event_costs_microseconds(tmp_path: Path) -> None:
    event = Read(1, 1, 1, 2.0, 2.0, 1.0, 0.0, 2.5, 3.0)
    with RunRecord(tmp_path) as record:
        best = min(_seconds(record, event) for _ in range(20))
    assert best < 200e-6  # some 6 µs on an idle machine


def _seconds(record: RunRecord, event: Event) -> float:
    began = time.perf_counter()
    for _ in range(50):
        record.record(event)
    return (time.perf_counter() - began) / 50


def test_agreements_are_noted_at_once_in_a_new_epoch_and_then_now_and_then() -> None:
    noted: list[Event] = []
    notes = ClockNotes(noted.append)
    for epoch in (5, 5, 5, 6):
        notes.note(ClockAgreement(Exchange(1.0, 1.002, 40.0, 40.0, epoch, 1000.0)))
    assert [event.epoch for event in noted if isinstance(event, ClockAgreed)] == [5, 6]
    first = noted[0]
    assert isinstance(first, ClockAgreed)
    assert first.device == pytest.approx(40.0 + 1000.0 * (first.host - 1.001))
    assert first.error >= 0.001
