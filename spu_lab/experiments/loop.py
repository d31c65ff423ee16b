"""Loop: MNIST through a free-running device, and what host and device do at the same time, the paper's Fig. 1.

The device goes at its own pace, so that its 50 τ take about as long as the host's differentiation. In one run
steps are one-step-stale: each uses the reading of the program before. In another each waits for its own.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

import torch
from rich.console import Console

from host_client.blocking import connect
from host_client.record import ClockAgreed, Event, Record
from spu_lab.local_daemon import local_daemon
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_lab.timeline import Timeline, Window, choose_window, describe_measurements, draw, headline, lay_out, subtitle
from spu_lab.timeline.turns import Turns, measure_turns
from spu_lab.training.loop import Training
from spu_lab.training.results import device_summary
from spu_lab.training.settings import Settings

RATE: Final = 1000.0
"""Of the device, τ a second: 50 τ are 50 ms."""

ANALOG_TIME: Final = 50.0
"""t, in τ."""

FREE, BLOCKING = "one step behind", "synchronous"

LOOPS: Final[Mapping[str, int | str]] = {FREE: 1, BLOCKING: "program"}
"""Freshness of the readings that the steps use."""

STEPS, QUICK_STEPS = 120, 40

WARMUP: Final = 10
"""Steps at the beginning that do not count."""

LONGER: Final = 1.05
"""Time between measurements over that between differentiations, up to which the one does not exceed the other."""

OVERLAP: Final = 0.1
"""Fraction of the analog time from which on device and host are said to work at the same time."""


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Train twice through a free-running daemon, and judge the loop by its record.

    Args:
        out: folder for ``loop.csv``, ``.json``, ``.md`` and ``.png``.
        spu: not taken: the rate of the device is part of the experiment.
        console: where to show it.
        quick: whether to make fewer steps.

    Raises:
        DeviceNotTaken: when a device is given.
        DaemonFailed, SpuError: when the daemon or the device fails.
    """
    if spu is not None:
        raise DeviceNotTaken("loop starts a daemon whose device has the rate that it needs; leave out --spu")
    reproduce(mnist(), QUICK_STEPS if quick else STEPS, out, console)


def reproduce(task: Task, steps: int, out: Path, console: Console) -> dict[str, Timeline]:
    """Train on a task for so many steps with each loop, and write the results; see `run`."""
    records = {}
    for name, freshness in LOOPS.items():
        settings = Settings.model_validate({"steps": steps, "analog_time": ANALOG_TIME, "freshness": freshness})
        records[name] = record(task, settings)
        console.print(f"{name}: {steps} steps are recorded", highlight=False)
    timelines = {name: lay_out(done) for name, done in records.items()}
    measured = {name: Measured.of(timeline) for name, timeline in timelines.items()}
    verdicts = judge(measured, _clock_error(records[FREE]))
    _write_csv(out / "loop.csv", timelines)
    title = f"The loop through a device of {RATE:g} τ a second, t = {ANALOG_TIME:g} τ: medians of {steps} steps"
    rows = [[name, *m.row()] for name, m in measured.items()]
    write_table(out / "loop.md", COLUMNS, rows, verdicts, console, title=title)
    timeline = timelines[FREE]
    window = choose_window(timeline)
    words = [describe_measurements(timeline, window), subtitle(records[FREE])]
    draw(timeline, window, out / "loop.png", title=headline(timeline, window), subtitles=words)
    content = {
        "status": "finished",
        **provenance(),
        "seeds": [0],
        "settings": {"steps": steps, "warmup": WARMUP, **records[FREE].header},
        "loops": {name: asdict(m) for name, m in measured.items()},
        "verdicts": to_json(verdicts),
    }
    write_json(out / "loop.json", content)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)
    return timelines


def record(task: Task, settings: Settings) -> Record:
    """Train through a daemon of its own, and return the record of the run."""
    events: list[Event] = []
    with (
        local_daemon(options=("--rate", f"{RATE:g}"), threads=1) as address,
        connect(address) as spu,
        spu.session(ttl=60.0) as session,
    ):
        header = {"settings": settings.model_dump(), "device": device_summary(spu.info)}
        torch.manual_seed(settings.seed)
        for _ in Training(task, settings, session, record=events.append).events(splits=()):
            pass
    return Record(header, tuple(events))


COLUMNS = (
    "step uses a reading",
    "differentiation, ms",
    "between two differentiations, ms",
    "between two measurements, ms",
    "t, τ",
    "t_d, τ",
    "overlap of t",
)
"""Overlap: fraction of the analog time during which the host differentiates for a later step."""


@dataclass(frozen=True)
class Measured:
    """Medians of a loop's record without its first steps.

    Attributes:
        differentiation: duration, s.
        between_differentiations: from the beginning of one to that of the next, s.
        between_measurements: from one used to the next used, s.
        nearest: shortest time from a used measurement to the next program taking effect, s.
        turns: analog time, delay and overlap.
    """

    differentiation: float
    between_differentiations: float
    between_measurements: float
    nearest: float
    turns: Turns

    @classmethod
    def of(cls, timeline: Timeline) -> Measured:
        """Measure a run that has more than `WARMUP` steps."""
        calls = timeline.of("differentiation")[WARMUP:]
        window = Window(calls[0].began, timeline.ended)
        used = [m.time for m in timeline.measurements if m.used and m.time >= window.began]
        effects = [bar.began for bar in timeline.of("program")]
        turns = measure_turns(timeline, window)
        assert turns is not None
        return cls(
            differentiation=median(call.ended - call.began for call in calls),
            between_differentiations=median(after.began - call.began for call, after in pairwise(calls)),
            between_measurements=median(after - before for before, after in pairwise(used)),
            nearest=min(effects[k] - time for time in used if (k := bisect_right(effects, time)) < len(effects)),
            turns=turns,
        )

    def row(self) -> list[str]:
        """Return the numbers of the table."""
        times = (self.differentiation, self.between_differentiations, self.between_measurements)
        delay = "–" if self.turns.delay is None else f"{self.turns.delay:.3g}"
        return [*(f"{1e3 * time:.1f}" for time in times), f"{self.turns.analog_time:.3g}", delay, self.overlap]

    @property
    def overlap(self) -> str:
        """Return the overlap in words."""
        return f"{self.turns.evolution:.0%}"


def judge(measured: Mapping[str, Measured], clock_error: float) -> list[Verdict]:
    """Return the verdicts on what the figure says of the loop.

    Args:
        measured: of the loop of each kind.
        clock_error: bound on the error of device times among host times, median over the run, s.
    """
    free, blocking = measured[FREE], measured[BLOCKING]
    return [
        Verdict(
            f"The device keeps evolving while the host differentiates: more than {OVERLAP:.0%} of the analog time",
            f"{free.overlap} of it, with readings one step old, against {blocking.overlap} in a synchronous loop.",
            free.turns.evolution > OVERLAP,
        ).of_paper("abstract: loop"),
        Verdict(
            "Measurements and uploads have times of their own: no program takes effect at a measurement",
            f"From a measurement to the next program taking effect: {1e3 * free.nearest:.2g} ms at least, and t_d = "
            f"{free.turns.delay:.3g} τ (median); device times are known within {1e3 * clock_error:.2g} ms (median).",
            True if free.nearest > clock_error else None,
        ).of_paper("Fig. 1"),
        Verdict(
            f"The time between two measurements exceeds that between two differentiations by {LONGER - 1:.0%} at most",
            f"{1e3 * free.between_measurements:.1f} ms and {1e3 * free.between_differentiations:.1f} ms (medians).",
            free.between_measurements <= LONGER * free.between_differentiations,
        ).of_paper("Fig. 1"),
        Verdict(
            "The overlap saves time: a step takes less than one that waits for its own reading",
            f"{1e3 * free.between_differentiations:.1f} ms against {1e3 * blocking.between_differentiations:.1f} ms; "
            f"{1e3 * ANALOG_TIME / RATE:g} ms is the analog time alone.",
            free.between_differentiations < blocking.between_differentiations,
        ).of_paper("abstract: loop"),
    ]


def _clock_error(done: Record) -> float:
    return median(agreed.error for agreed in done.of(ClockAgreed) if agreed.rate)


def _write_csv(path: Path, timelines: Mapping[str, Timeline]) -> None:
    """Write all bars and measurements."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("loop", "lane", "what", "number", "began_s", "ended_s", "used"))
        for name, timeline in timelines.items():
            for bar in timeline.bars:
                writer.writerow((name, bar.lane, bar.kind, bar.number, bar.began, bar.ended, ""))
            for m in timeline.measurements:
                writer.writerow((name, "SPU", "measurement", m.reading.number, m.began, m.time, int(m.used)))
