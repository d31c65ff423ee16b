"""Specification: what a device must deliver to solve a differential equation, each property varied alone.

Poisson 2D by a physics-informed network, with natural gradients from devices with a stepped clock: analog time, noise,
bits, mismatch and damping, and what refined and averaged readings buy.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from rich.console import Console

from host_client.curvature import CurvatureFallback
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.descent import descend
from spu_lab.studies.devices import open_device
from spu_lab.studies.jobs import work_off
from spu_lab.studies.pinn_methods import by_solver
from spu_lab.studies.specification import (
    AVERAGED,
    FACTOR,
    IDEAL,
    KNOBS,
    PLAIN,
    REFINED,
    Device,
    Knob,
    find_limit,
    is_looser,
)
from spu_lab.studies.specification_figure import specification_figure
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.tasks.pinn import POISSON_2D, Problem
from spu_lab.training.report import save_whole

Errors: TypeAlias = Mapping[tuple[str, str], Mapping[float, Sequence[float]]]
"""Lowest errors of all seeds by value, by the name of a property and the way to read."""

COLUMNS = ("property", "ideal", PLAIN, AVERAGED, REFINED)

SUFFICIENT = {
    "t": (50.0, "The 50 τ of the paper's training of MNIST are enough"),
    "noise": (1e-6, "The paper's realistic noise of κ₀ ≈ 1e-6 is low enough"),
    "converters": (16, "The paper's 16 bits are enough for converters"),
    "resistors": (16, "The paper's 16 bits are enough for resistors"),
}
"""What the paper's device has of a property, with the claim."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        knobs: properties, each with its values.
        seeds: of network, points and device.
        steps: of a run.
    """

    knobs: Sequence[Knob] = KNOBS
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 80


MINIATURE = Plan([replace(knob, values=knob.values[1:4:2]) for knob in KNOBS[1:3]], seeds=(0,), steps=30)
"""What ``--quick`` runs."""


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Solve the equation on all devices with all seeds; find the limit of each property.

    Args:
        out: folder for ``specification.csv``, ``.json``, ``.md`` and ``.png``.
        spu: None gives each run a daemon with a stepped clock; ``"inproc:"`` puts the device into the run's process.
        console: where to show it.
        quick: whether to run the miniature.

    Raises:
        DeviceNotTaken: when another device is given.
        DaemonFailed, SpuError: when a daemon or device fails.
    """
    if spu not in (None, "inproc:"):
        raise DeviceNotTaken("specification makes devices of its own; leave out --spu")
    reproduce(MINIATURE if quick else Plan(), out, spu, console)


def reproduce(plan: Plan, out: Path, spu: str | None, console: Console) -> None:
    """Run a plan, and write its results; see `run`."""
    devices = {"ideal": IDEAL} | {
        f"{knob.name} {value:g}, {way}": knob.device(value, way)
        for knob in plan.knobs
        for value in knob.values
        for way in knob.ways
    }
    jobs = {
        f"{name}, seed {seed}": {"device": asdict(device), "seed": seed, "steps": plan.steps}
        for name, device in devices.items()
        for seed in plan.seeds
    }
    done = work_off(partial(solve, spu), jobs, out, console, kind=float)
    by_device = {name: [done[f"{name}, seed {seed}"] for seed in plan.seeds] for name in devices}
    errors = {
        (knob.name, way): {value: by_device[f"{knob.name} {value:g}, {way}"] for value in knob.values}
        for knob in plan.knobs
        for way in knob.ways
    }
    _write(plan, out, by_device["ideal"], errors, console)


def solve(spu: str | None, device: Mapping[str, Any], seed: int, steps: int) -> float:
    """Return the lowest relative L2 error in so many steps on a device, of the arguments of `Device`."""
    chosen, task, network = Device(**device), Problem(POISSON_2D, seed), POISSON_2D.build(seed)
    with (
        warnings.catch_warnings(),
        open_device(spu, driver="analog", driver_option=chosen.board, seed=seed) as opened,
        opened.session(ttl=60.0) as session,
    ):
        warnings.simplefilter("ignore", CurvatureFallback)
        points = descend(task, network, by_solver(task, network, chosen.solver(session), chosen.damping), steps)
    return min(point.error for point in points)


def _write(plan: Plan, out: Path, ideal: Sequence[float], errors: Errors, console: Console) -> None:
    """Write all files."""
    limits = {
        knob.name: {way: find_limit(knob, errors[knob.name, way], ideal) for way in knob.ways} for knob in plan.knobs
    }
    verdicts = [verdict for knob in plan.knobs for verdict in judge(knob, limits[knob.name])]
    over = f"{len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "one seed"
    with (out / "specification.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("property", "value", "reading", "seed", "error"))
        writer.writerows(("", "", "ideal", seed, error) for seed, error in zip(plan.seeds, ideal, strict=True))
        for (name, way), by_value in errors.items():
            for value, of_seeds in by_value.items():
                writer.writerows(
                    (name, value, way, seed, error) for seed, error in zip(plan.seeds, of_seeds, strict=True)
                )
    title = f"The specification of an SPU that solves a PDE: limits for {FACTOR:g} times the ideal device's error"
    rows = [_row(knob, limits[knob.name]) for knob in plan.knobs]
    note = (
        f"The ideal device has a relative L2 error of {median(ideal):.1e}, median over {over}, in {plan.steps} steps "
        f"of Poisson 2D with λ = {IDEAL.damping:g} and t = {IDEAL.analog_time:g} τ. – : not within a factor of "
        f"{FACTOR:g} with any value tried, or no different from a plain reading."
    )
    write_table(out / "specification.md", COLUMNS, rows, verdicts, console, title=title, notes=[note])
    caption = (
        f"Poisson 2D, {POISSON_2D.parameters} parameters, {plan.steps} steps with a line search; lowest error, median, "
        f"and min to max, over {over}. Each property is varied alone, around an ideal device with λ = "
        f"{IDEAL.damping:g} and t = {IDEAL.analog_time:g} τ. κ₀ is that for drives whose largest value is 1. An "
        "average of readings is drawn where they differ from each other."
    )
    picture = specification_figure(
        plan.knobs, errors, ideal, title="What a device must deliver to solve a PDE", caption=caption
    )
    save_whole(picture, out / "specification.png")
    content = {
        "status": "finished",
        **provenance(),
        "seeds": plan.seeds,
        "settings": {"steps": plan.steps, "equation": POISSON_2D.name, "factor": FACTOR, "ideal": asdict(IDEAL)},
        "ideal": ideal,
        "errors": [
            {"property": name, "reading": way, "value": value, "errors": of_seeds}
            for (name, way), by_value in errors.items()
            for value, of_seeds in by_value.items()
        ],
        "limits": limits,
        "verdicts": to_json(verdicts),
    }
    write_json(out / "specification.json", content)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)


def _row(knob: Knob, limits: Mapping[str, float | None]) -> list[str]:
    """Return the row of a property, for `COLUMNS`."""
    sign = "≥" if knob.values[0] > knob.values[-1] else "≤"
    exact = {"t": f"{IDEAL.analog_time:g}", "noise": "0", "mismatch": "0", "damping": f"{IDEAL.damping:g}"}
    cells = [f"{sign} {limit:g}" if (limit := limits.get(way)) is not None else "–" for way in COLUMNS[2:]]
    return [knob.title, exact.get(knob.name, "exact"), *cells]


def judge(knob: Knob, limits: Mapping[str, float | None]) -> list[Verdict]:
    """Return whether the paper's value is within the limit, and whether refined and averaged readings loosen it."""
    verdicts, plain = [], limits[PLAIN]
    if knob.name in SUFFICIENT:
        value, claim = SUFFICIENT[knob.name]
        within = plain is not None and (plain <= value if knob.values[0] > knob.values[-1] else plain >= value)
        verdicts.append(Verdict(f"{claim} to solve Poisson 2D", f"The limit is {_words(plain)}.", within))
    for way in knob.ways[1:]:
        claim = f"{way[0].upper() + way[1:]} loosen the limit of {knob.title}"
        outcome = f"The limit is {_words(limits[way])}, and {_words(plain)} with plain readings."
        verdicts.append(Verdict(claim, outcome, is_looser(knob, limits[way], plain)))
    return verdicts


def _words(limit: float | None) -> str:
    return "better than all values tried" if limit is None else f"{limit:g}"
