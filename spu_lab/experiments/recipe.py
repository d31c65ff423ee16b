"""Recipe: η, λ and t by the recipe of the documentation, applied without a look at the result, against a grid.

Two classifiers, a regression and two differential equations. Steps of the recipe and of the grid are read from devices
with a stepped clock and without noise, with t = 5/λ.
"""

from __future__ import annotations

import csv
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.console import Console

from host_client.curvature import CurvatureFallback
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.devices import open_device
from spu_lab.studies.jobs import work_off
from spu_lab.studies.panels import ARMS
from spu_lab.studies.readings_by_time import train
from spu_lab.studies.recipe import SETTLED, apply_recipe
from spu_lab.studies.small_problems import KINDS, build
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.training.report import INK, MUTED, PlainTicks, dress, legend_below_title, save_whole

RECIPE: Final = "recipe"

NEAR: Final = {"digits": 1.2, "spirals": 1.2, "regression": 1.2, "poisson": 3.0, "heat": 3.0}
"""Ratio to the score of the best point of the grid within which the recipe is to be. Errors of equations differ between
seeds by more than losses do."""

COLUMNS = ("problem", "λ and η of the recipe", "its score", "best of the grid", "its score", "ratio")


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        dampings: λ of the grid, by problem.
        rates: η of the grid, where there is no line search.
        seeds: of each.
        fraction: of the steps of a run that are taken.
    """

    dampings: Mapping[str, Sequence[float]]
    rates: Sequence[float] = (0.03, 0.1, 0.3, 1.0)
    seeds: Sequence[int] = (0, 1, 2)
    fraction: float = 1.0


PLAN = Plan(
    {
        "digits": (1e-3, 1e-2, 1e-1, 1.0),
        "spirals": (1e-4, 1e-3, 1e-2, 1e-1),
        "regression": (1e-5, 1e-4, 1e-3, 1e-2),
        "poisson": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4),
        "heat": (1e-9, 1e-8, 1e-7, 1e-6, 1e-5),
    }
)
MINIATURE = Plan({"regression": (1e-4,)}, rates=(0.1, 0.3), seeds=(0,), fraction=0.5)
"""What ``--quick`` runs."""


@dataclass(frozen=True)
class Trained:
    """A training run.

    Attributes:
        damping: λ.
        rate: η.
        score: at the end; infinite where it diverged.
    """

    damping: float
    rate: float
    score: float


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Train with the recipe and with the grid, on all problems and seeds.

    Args:
        out: folder for ``recipe.csv``, ``.json``, ``.md`` and ``.png``.
        spu: None gives each run a daemon with a stepped clock; ``"inproc:"`` puts the device into the run's process.
        console: where to show it.
        quick: whether to run the miniature.

    Raises:
        DeviceNotTaken: when another device is given.
        DataUnavailable, DaemonFailed, SpuError: when data, a daemon or a device is missing or fails.
    """
    if spu not in (None, "inproc:"):
        raise DeviceNotTaken("recipe makes devices of its own; leave out --spu")
    reproduce(MINIATURE if quick else PLAN, out, spu, console)


def reproduce(plan: Plan, out: Path, spu: str | None, console: Console) -> None:
    """Run a plan, and write its results; see `run`."""
    points: dict[str, dict[str, dict[str, float] | None]] = {name: {RECIPE: None} for name in plan.dampings}
    for name, dampings in plan.dampings.items():
        for damping in dampings:
            for rate in (1.0,) if "line_search" in KINDS[name].options() else plan.rates:
                points[name][f"λ {damping:g}, η {rate:g}"] = {"damping": damping, "rate": rate}
    jobs = {
        f"{name}, {label}, seed {seed}": {
            "name": name,
            "seed": seed,
            "point": point,
            "steps": math.ceil(plan.fraction * KINDS[name].steps),
        }
        for name, of_name in points.items()
        for label, point in of_name.items()
        for seed in plan.seeds
    }
    done = work_off(partial(_train, spu), jobs, out, console, kind=Trained)
    results = {
        name: {label: [done[f"{name}, {label}, seed {seed}"] for seed in plan.seeds] for label in of_name}
        for name, of_name in points.items()
    }
    _write(plan, out, results, console)


def _train(spu: str | None, name: str, seed: int, point: Mapping[str, float] | None, steps: int) -> Trained:
    """Train with a point of the grid; None: with the recipe."""
    kind = KINDS[name]
    with warnings.catch_warnings(), open_device(spu, seed=seed) as device, device.session(ttl=60.0) as session:
        warnings.simplefilter("ignore", CurvatureFallback)
        if point is None:
            kind = apply_recipe(kind, seed, session)
        else:
            options: dict[str, Any] = {**kind.options(), "lr": point["rate"]}
            kind = replace(kind, damping=point["damping"], options=lambda: options)
        problem, rate = build(kind, seed), kind.options()["lr"]
        try:
            train(kind, problem, session, steps, SETTLED)
        except FloatingPointError:
            return Trained(kind.damping, rate, math.inf)
    score = problem.score()
    return Trained(kind.damping, rate, score if math.isfinite(score) else math.inf)


def find_best(by_point: Mapping[str, Sequence[Trained]]) -> str:
    """Return the point of the grid with the lowest median score."""
    grid = [label for label in by_point if label != RECIPE]
    return min(grid, key=lambda label: _median(by_point[label]))


def judge(name: str, by_point: Mapping[str, Sequence[Trained]]) -> Verdict:
    """Return whether the recipe comes near the best point of the grid."""
    best = find_best(by_point)
    recipe, tuned = _median(by_point[RECIPE]), _median(by_point[best])
    seeds = ", ".join(f"{trained.score:.3g}" for trained in by_point[RECIPE])
    return Verdict(
        f"{KINDS[name].title}: the recipe's {KINDS[name].score} is within {NEAR[name]:g} times that of the best of "
        f"{len(by_point) - 1} points of a grid",
        f"{recipe:.3g} ({seeds} by seed), and {tuned:.3g} with {best}: a ratio of {recipe / tuned:.2f}.",
        math.isfinite(recipe) and recipe <= NEAR[name] * tuned,
    )


def _median(trainings: Sequence[Trained]) -> float:
    return median(trained.score for trained in trainings)


def _write(plan: Plan, out: Path, results: Mapping[str, Mapping[str, Sequence[Trained]]], console: Console) -> None:
    """Write all files."""
    with (out / "recipe.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("problem", "settings", "seed", "λ", "η", "score"))
        for name, by_point in results.items():
            for label, trainings in by_point.items():
                for seed, t in zip(plan.seeds, trainings, strict=True):
                    writer.writerow((name, label, seed, t.damping, t.rate, t.score))
    verdicts = [judge(name, by_point) for name, by_point in results.items()]
    over = f"{len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "one seed"
    title = f"The recipe for η, λ and t against the best of a grid, medians over {over}"
    rows = [_row(name, by_point) for name, by_point in results.items()]
    write_table(out / "recipe.md", COLUMNS, rows, verdicts, console, title=title)
    save_whole(draw(results, over), out / "recipe.png")
    content = {
        "status": "finished",
        **provenance(),
        "seeds": plan.seeds,
        "settings": asdict(plan),
        "scores": {
            name: {label: [asdict(t) for t in trainings] for label, trainings in by_point.items()}
            for name, by_point in results.items()
        },
        "verdicts": to_json(verdicts),
    }
    write_json(out / "recipe.json", content)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)


def _row(name: str, by_point: Mapping[str, Sequence[Trained]]) -> list[str]:
    best, recipe = find_best(by_point), by_point[RECIPE]
    chosen = f"λ {median(t.damping for t in recipe):.2g}, η {median(t.rate for t in recipe):.2g}"
    mine, tuned = _median(recipe), _median(by_point[best])
    return [KINDS[name].title, chosen, f"{mine:.3g}", best, f"{tuned:.3g}", f"{mine / tuned:.2f}"]


def draw(results: Mapping[str, Mapping[str, Sequence[Trained]]], over: str) -> Figure:
    """Draw the scores of the recipe and of all points of the grid, as ratios to that of the best point."""
    figure = Figure(figsize=(9.0, 2.0 + 0.6 * len(results)), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle("The recipe against a grid\n\n", x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    axes = figure.subplots()
    for place, by_point in enumerate(results.values()):
        best = _median(by_point[find_best(by_point)])
        grid = [ratio for label in by_point if label != RECIPE if (ratio := _median(by_point[label]) / best) < 1e3]
        axes.plot(grid, [place] * len(grid), "|", color=MUTED, markersize=14, label="points of the grid")
        of_seeds = [t.score / best for t in by_point[RECIPE] if t.score < 1e3 * best]
        axes.plot(of_seeds, [place] * len(of_seeds), ".", color=ARMS[5][0], label="recipe, each seed")
        axes.plot([_median(by_point[RECIPE]) / best], [place], "D", color=ARMS[0][0], label="recipe, median")
    axes.set_yticks(range(len(results)), [f"{KINDS[name].title}, {KINDS[name].score}" for name in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(PlainTicks())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1.0, color=MUTED, linewidth=1.0, linestyle="--")
    dress(axes, "score, as a ratio to that of the best point of the grid (less is better)")
    handles = {label: line for line in axes.lines if not (label := str(line.get_label())).startswith("_")}
    legend_below_title(figure, handles, columns=3)
    caption = f"Medians over {over}. Points with more than 1,000 times the best score are left out. t = {SETTLED:g}/λ."
    figure.supxlabel(textwrap.fill(caption, width=130), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure
