"""Runs of several methods on several problems as files: a line for each point, and JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spu_lab.studies.descent import Descent
from spu_lab.studies.descent_verdict import ERRORS

POINT_COLUMNS = ("method", "problem", "seed", "step", "error", "loss", "wall_seconds", "device_seconds")


def write_points(path: Path, descents: Iterable[Descent]) -> None:
    """Write the points of runs.

    Raises:
        OSError: when the file cannot be written.
    """
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(POINT_COLUMNS)
        for run in descents:
            head = (run.method, run.problem, run.seed)
            rows = ((p.step, p.error, p.loss, p.wall_seconds, p.device_seconds) for p in run.points)
            writer.writerows((*head, *row) for row in rows)


def summary(run: Descent) -> dict[str, Any]:
    """Return the end and the best of a run, ready for JSON."""
    last, best = run.points[-1], run.best
    return {
        "method": run.method,
        "problem": run.problem,
        "seed": run.seed,
        "steps": last.step,
        "wall_seconds": last.wall_seconds,
        "modelled_device_seconds": last.device_seconds,
        "lowest_error": best.error,
        "lowest_error_at_step": best.step,
        "reached": {f"{error:.0e}": None if (at := run.first_below(error)) is None else asdict(at) for error in ERRORS},
    }
