"""Files of a run: every iteration as CSV while it happens, and a summary as JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from host_client.capacity import Info
from spu_lab.training.loop import Evaluation, Run, StepMetrics

COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "accuracy": "accuracy",
    "time_s": "time",
    "duration_s": "duration",
    "uploaded_bytes": "uploaded",
    "device_time_tau": "device_time",
    "staleness_tau": "staleness",
}
"""Columns of the CSV, with units, and the attributes of `StepMetrics` they hold."""


class StepWriter:
    """Writes iterations to a CSV file, each as it happens, so that an interrupted run leaves what it had."""

    def __init__(self, stream: Any, *, header: bool = True) -> None:
        self._writer = csv.writer(stream)
        if header:
            self._writer.writerow(COLUMNS)

    def write(self, step: StepMetrics) -> None:
        """Add one row; what does not apply stays empty."""
        self._writer.writerow(getattr(step, attribute) for attribute in COLUMNS.values())


@contextmanager
def step_writer(path: Path, *, append: bool = False) -> Iterator[StepWriter]:
    """Give a writer for a CSV file, a new one or the one that is there; its folder is made.

    Raises:
        OSError: when the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", newline="", buffering=1, encoding="utf-8") as stream:
        yield StepWriter(stream, header=not append)


def summary(run: Run) -> dict[str, Any]:
    """Settings and results of a run, ready for JSON; of one without iterations the settings alone."""
    if not run.steps:
        return {"settings": run.settings.model_dump(), "results": {"iterations": 0, "parameters": run.parameters}}
    return {
        "settings": run.settings.model_dump(),
        "results": {
            "iterations": len(run.steps),
            "training_loss": run.training_loss(),
            "median_seconds_per_iteration": run.seconds_per_iteration,
            "seconds": run.steps[-1].time,
            "modelled_device_seconds": run.modelled_seconds,
            "modelled_device_joules": run.modelled_joules,
            "measured_delay_tau": run.delay,
            "bytes_per_upload": run.bytes_per_upload,
            "explicit_jacobian_bytes": run.jacobian_bytes,
            "parameters": run.parameters,
            **{f"{e.split}_{name}": getattr(e, name) for e in last_evaluations(run) for name in ("loss", "accuracy")},
        },
        "device_report": run.report,
        "evaluations": [asdict(e) for e in run.evaluations],
    }


def last_evaluations(run: Run) -> list[Evaluation]:
    """The last evaluation of each split."""
    return list({e.split: e for e in run.evaluations}.values())


def device_summary(info: Info) -> dict[str, Any]:
    """Return the description of the device, ready for JSON; its current status is left out."""
    return {
        "driver": info.driver,
        "version": info.version,
        "cells": info.cells,
        "tau_s": info.tau,
        "clock": info.clock,
        "rate_tau_per_s": info.rate,
        "features": list(info.features),
    }
