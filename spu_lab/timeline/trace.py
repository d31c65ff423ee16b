"""The timeline as a trace that ui.perfetto.dev and chrome://tracing open.

The format is Chrome's trace events: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from host_client.record import Event
from spu_lab.timeline.elements import Arrow, ArrowKind, Bar, BarKind, Lane, Measurement, Timeline
from spu_lab.timeline.time_base import Unit
from spu_lab.timeline.window import Window

MICROSECONDS: Final[dict[Unit, float]] = {"s": 1e6, "τ": 1e3}
"""Of the trace in a unit of the axis: on a stepped clock a τ is shown as a millisecond."""

PROCESSES: Final = {1: "host", 2: "link", 3: "SPU"}
"""Lanes, by the number that a trace gives a process."""

THREADS: Final[dict[Lane, tuple[int, int]]] = {
    "host": (1, 10),
    "uploads": (2, 20),
    "readings": (2, 30),
    "emulator": (3, 60),
    "SPU": (3, 40),
}
"""Process, and first thread, of a lane; each further row has the next thread."""

APART: Final[dict[BarKind, tuple[int, int]]] = {"wait": (1, 13), "update": (1, 16)}
"""The same for kinds of bars that share a lane. On a stepped clock an update and the differentiation after it are one
instant, and of two slices on a thread a viewer would take one for a part of the other."""

MEASUREMENTS: Final = (3, 50)
"""Process and thread of the instants at which the device was measured."""

GAPS: Final = ((2, 80), (3, 80))
"""Processes and threads of times without the device."""

NAMES: Final[dict[BarKind, str]] = {
    "differentiation": "differentiate",
    "wait": "wait for update",
    "update": "update",
    "upload": "upload",
    "reading": "reading",
    "computing": "compute reading",
    "program": "program",
}

FLOWS: Final[dict[ArrowKind, str]] = {"submit": "upload", "take effect": "upload takes effect", "reading": "reading"}

SHORTEST = 1
"""Microseconds that an instant is drawn as, so that arrows have something to hold on to."""


def write_trace(
    timeline: Timeline, path: Path, *, window: Window | None = None, about: Mapping[str, Any] | None = None
) -> int:
    """Write a run as trace events.

    Each lane is a process; arrows are flows; staleness is a counter; times without the device are slices of their own.

    Args:
        timeline: the run.
        path: of the JSON file; its folder is made.
        window: what is written; default: all.
        about: the header of the record, kept as the trace's metadata.

    Returns:
        Number of events written.

    Raises:
        OSError: when the file cannot be made.
    """
    events = [*_metadata(timeline), *sorted(_events(timeline, window or Window(0.0, timeline.ended)), key=_order)]
    content = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(about or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(events)


def _order(event: Mapping[str, Any]) -> tuple[int, int]:
    """By time; of two that begin together, the one that encloses the other first, and flows after slices."""
    return event["ts"], -event.get("dur", 0)


def _metadata(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for pid, name in PROCESSES.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    threads = {_thread(bar, timeline.unit): _thread_name(bar, timeline.unit) for bar in timeline.bars}
    threads[MEASUREMENTS] = "measured"
    if timeline.gaps:
        threads |= dict.fromkeys(GAPS, "device lost")
    for (pid, tid), name in sorted(threads.items()):
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _events(timeline: Timeline, window: Window) -> Iterator[dict[str, Any]]:
    scale = MICROSECONDS[timeline.unit]
    shown = [bar for bar in timeline.bars if window.shows(bar.began, bar.ended)]
    for bar in shown:
        name = f"{NAMES[bar.kind]} {bar.number}" + (f" ({getattr(bar.event, 'outcome', '')})" if bar.lost else "")
        yield _slice(name, bar.kind, _thread(bar, timeline.unit), bar.began, bar.ended, scale, bar.event)
        staleness = getattr(bar.event, "staleness", None)
        if bar.kind == "update" and staleness is not None:
            counter = {"ph": "C", "name": "staleness in τ", "pid": 1, "tid": 0}
            yield counter | {"ts": _ts(bar.began, scale), "args": {"τ": staleness}}
    measured = [m for m in timeline.measurements if window.shows(m.began, m.time)]
    for m in measured:
        yield _slice(f"measure program {m.step}", "measurement", MEASUREMENTS, m.time, m.time, scale, m.reading)
    for gap in timeline.gaps:
        if window.shows(gap.began, gap.ended):
            for thread in GAPS:
                yield _slice("device lost", "gap", thread, gap.began, gap.ended, scale, gap.lost)
    known = set(map(id, shown))
    arrows = [a for a in timeline.arrows if id(a.source) in known and id(a.target) in known]
    by_number = {m.reading.number: m for m in measured}
    for number, arrow in enumerate(arrows):
        yield from _flow(arrow, number, timeline.unit, by_number)


def _slice(
    name: str, category: str, thread: tuple[int, int], began: float, ended: float, scale: float, event: Event
) -> dict[str, Any]:
    (pid, tid), ts = thread, _ts(began, scale)
    lasted = max(_ts(ended, scale) - ts, SHORTEST)
    shared = {"ph": "X", "name": name, "cat": category, "pid": pid, "tid": tid}
    return shared | {"ts": ts, "dur": lasted, "args": asdict(event)}


def _flow(arrow: Arrow, number: int, unit: Unit, measured: Mapping[int, Measurement]) -> Iterator[dict[str, Any]]:
    """An arrow as the events of a flow, each inside a slice: a reading's from where it was measured, over the link."""
    places = [(*_thread(bar, unit), bar.began) for bar in (arrow.source, arrow.target)]
    if arrow.kind == "reading" and arrow.source.number in measured:
        places.insert(0, (*MEASUREMENTS, measured[arrow.source.number].time))
    places.sort(key=lambda place: place[2])
    for index, (pid, tid, place) in enumerate(places):
        phase = "s" if index == 0 else "f" if index == len(places) - 1 else "t"
        event = {
            "ph": phase,
            "name": FLOWS[arrow.kind],
            "cat": "flow",
            "id": number,
            "pid": pid,
            "tid": tid,
            "ts": _ts(place, MICROSECONDS[unit]),
        }
        yield event | ({"bp": "e"} if phase == "f" else {})


def _thread(bar: Bar, unit: Unit) -> tuple[int, int]:
    pid, first = APART[bar.kind] if unit == "τ" and bar.kind in APART else THREADS[bar.lane]
    return pid, first + bar.row


def _thread_name(bar: Bar, unit: Unit) -> str:
    if bar.lane == "SPU":
        return "evolution"
    if bar.lane == "emulator":
        return "emulator computes"
    return bar.kind if unit == "τ" and bar.lane == "host" else bar.lane


def _ts(place: float, scale: float) -> int:
    """Whole microseconds, so that what follows on something never overlaps it by a rounding error."""
    return round(place * scale)
