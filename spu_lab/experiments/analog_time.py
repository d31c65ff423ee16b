"""Analog time: the error of a reading against t with its bounds, and training with t found at each step.

Curvatures are those of MNIST, a regression and a physics-informed network. Devices have a stepped clock and no noise;
their cells start from the drive.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from rich.console import Console

from host_client.curvature import CurvatureFallback
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.analog_time_figure import analog_time_figure
from spu_lab.studies.devices import open_device
from spu_lab.studies.jobs import work_off
from spu_lab.studies.paired import compare
from spu_lab.studies.readings_by_time import Curve, measure_curve, train
from spu_lab.studies.small_problems import KINDS, Kind, build
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.training.report import save_whole

AUTO: Final = "auto"

CLOSE: Final = 1.2
"""Ratio to the score of the best fixed t within which that of the found t is to be."""

TIGHT: Final = 5.0
"""Ratio to the shortest time within which the found one is to be: some times too long is still no guess."""

ROUNDING: Final = 1.01
"""Ratio by which a measured error may be above its bound: values travel as float32."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        kinds: names of the problems.
        seeds: of each.
        curve_times: t of readings of one program, in 1/λ.
        bounds: errors of a reading that `settling_time` is asked for.
        times: fixed t in training, in 1/λ.
        warm_up: steps before the program is read.
        fraction: of the steps of a training run that are taken.
    """

    kinds: Sequence[str] = ("digits", "regression", "poisson")
    seeds: Sequence[int] = tuple(range(10))
    curve_times: Sequence[float] = tuple(float(t) for t in np.logspace(-4, 1, 21))
    bounds: Sequence[float] = tuple(float(b) for b in np.logspace(-3, 0, 13))
    times: Sequence[float] = (5.0, 2.0, 1.0, 0.3, 0.1, 0.03)
    warm_up: int = 10
    fraction: float = 1.0


MINIATURE = Plan(kinds=("regression",), seeds=(0, 1), times=(5.0, 0.3), fraction=0.5)
"""What ``--quick`` runs."""


@dataclass(frozen=True)
class Training:
    """How a training run ended.

    Attributes:
        score: at the end; infinite where it diverged.
        time: device time a step, in 1/λ.
    """

    score: float
    time: float


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Measure the errors of readings, and train with fixed and with found t.

    Args:
        out: folder for ``analog-time.csv``, ``.json``, ``.md`` and ``.png``.
        spu: None gives each run a daemon with a stepped clock; ``"inproc:"`` puts the device into the run's process.
        console: where to show it.
        quick: whether to run the miniature.

    Raises:
        DeviceNotTaken: when another device is given.
        DataUnavailable, DaemonFailed, SpuError: when data, a daemon or a device is missing or fails.
    """
    if spu not in (None, "inproc:"):
        raise DeviceNotTaken("analog-time makes devices of its own; leave out --spu")
    reproduce(MINIATURE if quick else Plan(), out, spu, console)


def reproduce(plan: Plan, out: Path, spu: str | None, console: Console) -> None:
    """Run a plan, and write its results; see `run`."""
    settings = {"steps": plan.warm_up, "times": plan.curve_times, "bounds": plan.bounds}
    curve_jobs = {
        f"readings, {name}, seed {seed}": {"name": name, "seed": seed, **settings, "damping": KINDS[name].damping}
        for name in plan.kinds
        for seed in plan.seeds
    }
    measured = work_off(partial(_measure, spu), curve_jobs, out, console, kind=Curve)
    labels: dict[str, float | None] = {AUTO: None} | {f"{time:g}/λ": time for time in plan.times}
    jobs = {
        f"{name}, t = {label}, seed {seed}": {
            "name": name,
            "seed": seed,
            "time": time,
            "steps": math.ceil(plan.fraction * KINDS[name].steps),
            "damping": KINDS[name].damping,
        }
        for name in plan.kinds
        for label, time in labels.items()
        for seed in plan.seeds
    }
    done = work_off(partial(_train, spu), jobs, out, console, kind=Training)
    curves = {name: [measured[f"readings, {name}, seed {seed}"] for seed in plan.seeds] for name in plan.kinds}
    trainings = {
        name: {label: [done[f"{name}, t = {label}, seed {seed}"] for seed in plan.seeds] for label in labels}
        for name in plan.kinds
    }
    _write(plan, out, curves, trainings, console)


def _measure(
    spu: str | None, name: str, seed: int, steps: int, times: Sequence[float], bounds: Sequence[float], damping: float
) -> Curve:
    """Measure a curve; see `_train` for `damping`."""
    with warnings.catch_warnings(), open_device(spu, seed=seed) as device, device.session(ttl=60.0) as session:
        warnings.simplefilter("ignore", CurvatureFallback)
        return measure_curve(KINDS[name], seed, session, steps=steps, times=times, bounds=bounds)


def _train(spu: str | None, name: str, seed: int, time: float | None, steps: int, damping: float) -> Training:
    """Train once; `damping` is that of the problem, so that a run that was kept with another one is not used."""
    kind = KINDS[name]
    problem = build(kind, seed)
    with warnings.catch_warnings(), open_device(spu, seed=seed) as device, device.session(ttl=60.0) as session:
        warnings.simplefilter("ignore", CurvatureFallback)
        try:
            used = train(kind, problem, session, steps, time)
        except FloatingPointError:
            return Training(math.inf, math.nan)
    return Training(problem.score(), used)


def judge_bound(kind: Kind, curves: Sequence[Curve]) -> list[Verdict]:
    """Return whether readings keep their bounds, and whether the found time is near the shortest one."""
    above = max(
        error / bound
        for curve in curves
        for of_bounds in (curve.bounded_errors, curve.spectral)
        for error, bound in zip(curve.errors, of_bounds, strict=True)
    )
    ratios = [curve.automatic / curve.needed for curve in curves]
    parts = [curve.automatic / curve.by_damping for curve in curves if curve.by_damping > 0.0]
    return [
        Verdict(
            f"{kind.title}: no reading has a larger error than either bound on it",
            f"The largest ratio of an error to a bound is {above:.3g}, over {len(curves)} seeds.",
            above <= ROUNDING,
        ),
        Verdict(
            f"{kind.title}: the t found for an error of 10 % is at most {TIGHT:g} times the shortest one",
            f"It is {median(ratios):.3g} times that (max {max(ratios):.3g}), and {median(parts):.2g} times the t of "
            "the bound with λ alone.",
            median(ratios) <= TIGHT,
        ),
    ]


def judge_training(kind: Kind, by_time: Mapping[str, Sequence[Training]]) -> Verdict:
    """Return whether the found t does about as well as the best fixed one, by medians over the seeds.

    It is not decided where it does worse by the medians, but a paired t test of the logarithms does not see a
    difference: the best of several fixed t is chosen by the scores that it is compared by.
    """
    scores = {label: median(training.score for training in of_seeds) for label, of_seeds in by_time.items()}
    fixed = {label: score for label, score in scores.items() if label != AUTO}
    best = min(fixed, key=lambda label: fixed[label])
    found, others = ([training.score for training in by_time[label]] for label in (AUTO, best))
    used = median(training.time for training in by_time[AUTO])
    outcome = f"{_spread(found)} with a mean t of {used:.2g}/λ, and {_spread(others)} with t = {best}: a ratio of "
    outcome += f"{scores[AUTO] / scores[best]:.2f}"
    holds: bool | None = math.isfinite(scores[AUTO]) and scores[AUTO] <= CLOSE * scores[best]
    if all(map(math.isfinite, (*found, *others))):
        paired = compare([math.log(mine / theirs) for mine, theirs in zip(found, others, strict=True)])
        assert paired is not None
        outcome += f", by seed {math.exp(paired.mean):.2f} ({math.exp(paired.low):.2f} to {math.exp(paired.high):.2f})"
        holds = holds or (False if paired.low > 0.0 else None)
    return Verdict(
        f"{kind.title}: with t found at each step the {kind.score} is within {CLOSE:g} times that of the best fixed t",
        f"{outcome}.",
        holds,
    )


def _spread(scores: Sequence[float]) -> str:
    return f"{median(scores):.3g} ({min(scores):.3g} to {max(scores):.3g})"


def _write(
    plan: Plan,
    out: Path,
    curves: Mapping[str, Sequence[Curve]],
    trainings: Mapping[str, Mapping[str, Sequence[Training]]],
    console: Console,
) -> None:
    """Write all files."""
    with (out / "analog-time.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("problem", "seed", "t", "score", "mean t times λ"))
        for name, by_time in trainings.items():
            for label, of_seeds in by_time.items():
                writer.writerows(
                    (name, seed, label, t.score, t.time) for seed, t in zip(plan.seeds, of_seeds, strict=True)
                )
    with (out / "analog-time-curves.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("problem", "seed", "t", "error", "bound", "bound by λ"))
        for name, of_name in curves.items():
            for seed, curve in zip(plan.seeds, of_name, strict=True):
                points = zip(curve.times, curve.errors, curve.bounded_errors, curve.spectral, strict=True)
                writer.writerows((name, seed, *point) for point in points)
    verdicts = [
        verdict
        for name in plan.kinds
        for verdict in (*judge_bound(KINDS[name], curves[name]), judge_training(KINDS[name], trainings[name]))
    ]
    over = f"{len(plan.seeds)} seeds"
    labels = list(trainings[plan.kinds[0]])
    title = f"Analog time: {', '.join(KINDS[name].score for name in plan.kinds)} with fixed and found t"
    rows = [_row(label, [trainings[name][label] for name in plan.kinds]) for label in labels]
    columns = ("t", *(cell for name in plan.kinds for cell in (KINDS[name].title, "mean tλ")))
    write_table(out / "analog-time.md", columns, rows, verdicts, console, title=title)
    caption = (
        f"Left: one program after {plan.warm_up} steps of training, read without noise, from the drive; median, min "
        "to max. Bounds: by 16 products with F, as settling_time has it, and by λ alone. The line is the time that is "
        f"found for 10 %. Right: training with t fixed, and with t found at each step; median, and min to max. {over}."
    )
    picture = analog_time_figure(
        [(KINDS[name], curves[name], trainings[name]) for name in plan.kinds],
        title="How long a device must run",
        caption=caption,
    )
    save_whole(picture, out / "analog-time.png")
    content = {
        "status": "finished",
        **provenance(),
        "seeds": plan.seeds,
        "settings": {
            **asdict(plan),
            "problems": {
                name: {"λ": KINDS[name].damping, "steps": KINDS[name].steps, "η": KINDS[name].options()["lr"]}
                for name in plan.kinds
            },
        },
        "readings": {
            name: [{"found": c.automatic, "shortest": c.needed, "by λ": c.by_damping} for c in of_name]
            for name, of_name in curves.items()
        },
        "trainings": {
            name: {label: [asdict(t) for t in of_seeds] for label, of_seeds in by_time.items()}
            for name, by_time in trainings.items()
        },
        "verdicts": to_json(verdicts),
    }
    write_json(out / "analog-time.json", content)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)


def _row(label: str, of_problems: Sequence[Sequence[Training]]) -> list[str]:
    cells = [
        cell
        for trainings in of_problems
        for cell in (f"{median(t.score for t in trainings):.3g}", f"{median(t.time for t in trainings):.2g}")
    ]
    return [label, *cells]
