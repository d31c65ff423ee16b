import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from spu_lab.timeline import Window, lay_out, write_trace
from tests.spu_lab.timeline.pipeline import FreeRunning, Stepped

RUNS = {
    "free": FreeRunning(),
    "slow": FreeRunning(upload=0.08, readings=3),
    "lost": FreeRunning(lost_after=5),
    "stepped": Stepped(),
    "no delay": Stepped(delay=0.0, analog_time=0.0),
}


def trace(run: FreeRunning | Stepped, path: Path, window: Window | None = None) -> list[dict[str, Any]]:
    count = write_trace(lay_out(run.record()), path, window=window, about={"settings": {"lr": 0.1}})
    content = json.loads(path.read_text())
    assert content["otherData"] == {"settings": {"lr": 0.1}}
    events: list[dict[str, Any]] = content["traceEvents"]
    assert len(events) == count
    return events


@pytest.mark.parametrize("name", RUNS)
def test_a_trace_keeps_the_rules_of_its_format(name: str, tmp_path: Path) -> None:
    events = trace(RUNS[name], tmp_path / "t.json")
    named = {event["pid"] for event in events if event["ph"] == "M" and event["name"] == "process_name"}
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    timed = [event for event in events if event["ph"] != "M"]
    assert {event["ph"] for event in timed} <= {"X", "s", "t", "f", "C"}
    assert all(isinstance(event["ts"], int) and event["ts"] >= 0 and event["pid"] in named for event in timed)
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)

    slices = defaultdict(list)
    for event in timed:
        if event["ph"] == "X":
            assert event["dur"] > 0
            assert event["name"]
            assert (event["pid"], event["tid"]) in threads
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for extents in slices.values():  # on one thread slices contain each other or are apart
        open_until: list[float] = []
        for began, ended in sorted(extents, key=lambda extent: (extent[0], -extent[1])):
            while open_until and open_until[-1] <= began:
                open_until.pop()
            assert not open_until or ended <= open_until[-1]
            open_until.append(ended)

    flows = defaultdict(list)
    for event in timed:
        if event["ph"] in "stf":
            flows[event["id"]].append(event)
            inside = slices[event["pid"], event["tid"]]
            assert any(began <= event["ts"] <= ended for began, ended in inside)
    assert flows
    for stations in flows.values():
        assert "".join(event["ph"] for event in stations) in ("sf", "stf")
        assert stations[-1]["bp"] == "e"
        assert len({event["name"] for event in stations}) == 1


@pytest.mark.parametrize("name", ["free", "slow", "lost", "stepped"])
def test_every_arrow_holds_on_to_the_slices_that_it_is_of(name: str, tmp_path: Path) -> None:
    """Viewers take the innermost slice at the event's time, of two that begin together the one that comes later."""
    events = trace(RUNS[name], tmp_path / "t.json")
    innermost: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)  # by thread, those that are open
    flows = defaultdict(list)
    for event in events:
        if event["ph"] not in "Xstf":
            continue
        open_now = innermost[event["pid"], event["tid"]]
        while open_now and open_now[-1]["ts"] + open_now[-1]["dur"] <= event["ts"]:
            open_now.pop()
        if event["ph"] == "X":
            open_now.append(event)
        else:
            flows[event["name"], event["id"]].append(open_now[-1]["cat"])
    ways = {
        "upload": {("differentiation", "upload")},
        "upload takes effect": {("upload", "program")},
        "reading": {("measurement", "reading", "update")},
    }
    assert {flow for flow, _ in flows} == set(ways)
    for (flow, _), slices in flows.items():
        assert tuple(slices) in ways[flow]


def test_a_trace_says_what_the_record_says(tmp_path: Path) -> None:
    run = RUNS["slow"]
    events = trace(run, tmp_path / "t.json")
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert "differentiate 3" in names
    assert "program 3" in names  # that of the second step was dropped
    assert any(name.endswith("(dropped)") for name in names)
    stale = [event["args"]["τ"] for event in events if event["ph"] == "C"]
    recorded = [event.staleness for event in run.events() if getattr(event, "staleness", None) is not None]  # type: ignore[union-attr]
    assert stale == pytest.approx(recorded)
    upload = next(event for event in events if event.get("cat") == "upload" and "dropped" not in event["name"])
    assert upload["args"]["nbytes"] == 5_800_000


def test_a_window_leaves_out_the_rest_and_arrows_into_it(tmp_path: Path) -> None:
    whole = trace(RUNS["free"], tmp_path / "whole.json")
    part = trace(RUNS["free"], tmp_path / "part.json", Window(0.15, 0.25))
    assert 0 < len(part) < len(whole)
    for event in part:
        if event["ph"] == "X":
            assert event["ts"] <= 0.25e6
            assert event["ts"] + event["dur"] >= 0.15e6
    ids = defaultdict(set)
    for event in part:
        if event["ph"] in "stf":
            ids[event["id"]].add(event["ph"])
    assert all({"s", "f"} <= phases for phases in ids.values())
