"""Methods on one problem compared: rows of a table, and claims with what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from spu_lab.studies.descent import Descent, Point
from spu_lab.studies.verdicts import Verdict

ERRORS = (1e-2, 1e-3, 1e-4)
"""Relative L2 errors whose steps and times are in the table."""

COLUMNS = ("problem, method", *(f"to {error:.0e}" for error in ERRORS), "lowest error")
"""Medians over seeds: steps, and seconds of wall time + modelled time of the device, to each error."""


def row(title: str, descents: Sequence[Descent]) -> list[str]:
    """Return the row of a method on a problem, for `COLUMNS`; – where half the seeds do not come to an error."""
    reached = [[descent.first_below(error) for descent in descents] for error in ERRORS]
    lowest = median(descent.best.error for descent in descents)
    return [f"{title}, {descents[0].method}", *map(_reached, reached), f"{lowest:.1e}"]


def judge_error(title: str, descents: Sequence[Descent], target: float, limit: int) -> Verdict:
    """Judge whether the median over seeds of the lowest error within `limit` steps is below `target`."""
    lowest = [descent.until(limit).best.error for descent in descents]
    return Verdict(
        f"{title}: {descents[0].method} comes below a relative L2 error of {target:g} within {limit} steps",
        f"Lowest error: {_spread(lowest)}.",
        median(lowest) < target,
    )


def judge_speed(
    title: str, descents: Sequence[Descent], baselines: Sequence[Descent], error: float | None = None
) -> list[Verdict]:
    """Judge, seed by seed, the steps and the time to an error; None: to the lowest one that a baseline comes to."""
    method, baseline = descents[0].method, baselines[0].method
    ends = [other.best if error is None else other.first_below(error) for other in baselines]
    targets = [other.best.error if error is None else error for other in baselines]
    reached = [mine.first_below(target) for mine, target in zip(descents, targets, strict=True)]
    goal = f"the lowest error of {baseline}" if error is None else f"an error of {error:g}"
    to = f"To {baseline}'s error of {median(targets):.1e}" if error is None else f"To {error:g}"
    verdicts = []
    for bound, factor, value, form in (
        ("a tenth of the steps", 0.1, _steps, "{:,.0f} steps"),
        ("the time", 1.0, _time, "{:.2g} s"),
    ):
        mine, theirs = (
            "it does not come" if m == math.inf else form.format(m)
            for m in (_median(reached, value), _median(ends, value))
        )
        verdicts.append(
            Verdict(
                f"{title}: {method} comes to {goal} in at most {bound} of {baseline}",
                f"{to}: {mine}, of {baseline} {theirs} (medians by seed).",
                median(_ratio(point, end, value) for point, end in zip(reached, ends, strict=True)) <= factor,
            )
        )
    return verdicts


def judge_end(title: str, descents: Sequence[Descent], baselines: Sequence[Descent]) -> Verdict:
    """Judge whether the median over seeds of the lowest error is at most a baseline's, each with all its steps."""
    mine, theirs = ([descent.best.error for descent in those] for those in (descents, baselines))
    method, baseline = descents[0].method, baselines[0].method
    steps, baseline_steps = descents[0].points[-1].step, baselines[0].points[-1].step
    return Verdict(
        f"{title}: {method} comes at least as low as {baseline}",
        f"Lowest error: {_spread(mine)} in {steps:,} steps; {baseline} {_spread(theirs)} in {baseline_steps:,}.",
        median(mine) <= median(theirs),
    )


def judge_likeness(
    title: str, descents: Sequence[Descent], references: Sequence[Descent], factor: float, limit: int
) -> Verdict:
    """Judge whether the lowest errors within `limit` steps are within a factor of a reference's, by their medians."""
    mine, theirs = ([descent.until(limit).best.error for descent in those] for those in (descents, references))
    method, reference = descents[0].method, references[0].method
    return Verdict(
        f"{title}: the error of {method} within {limit} steps is within a factor of {factor:g} of that of {reference}",
        f"Lowest errors: {_spread(mine)}; {reference} {_spread(theirs)}.",
        median(mine) <= factor * median(theirs),
    )


def _median(points: Sequence[Point | None], value: Callable[[Point], float]) -> float:
    """Return the median of a value over seeds, infinite for those that have no such point."""
    return median(math.inf if point is None else value(point) for point in points)


def _ratio(point: Point | None, end: Point | None, value: Callable[[Point], float]) -> float:
    """Return the ratio of a value; infinite where there is no point, else 0 where the baseline has none."""
    if point is None:
        return math.inf
    return 0.0 if end is None else value(point) / value(end)


def _reached(points: Sequence[Point | None]) -> str:
    """Return the medians of steps and time in words."""
    steps, seconds = _median(points, _steps), _median(points, _time)
    return "–" if steps == math.inf else f"{steps:,.0f} / {seconds:.2g} s"


def _steps(point: Point) -> float:
    return float(point.step)


def _time(point: Point) -> float:
    return point.seconds


def _spread(values: Sequence[float]) -> str:
    """Return the median of values, and their range if there are several."""
    between = f" ({min(values):.1e} to {max(values):.1e} over {len(values)} seeds)" if len(values) > 1 else ""
    return f"{median(values):.1e}{between}"
