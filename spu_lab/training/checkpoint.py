"""Save and load an interrupted run: one file, and the rows of the iterations before it."""

from __future__ import annotations

import csv
import io
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import TypeAdapter, ValidationError

from host_client.record.recorder import FILE as RECORD
from spu_lab.result_folder import CHECKPOINT, CheckpointUnusable, checkpoint_in, write_whole
from spu_lab.training.loop import Evaluation, Run, StepMetrics, Training
from spu_lab.training.results import COLUMNS

STEPS: Final = "steps.csv"

RENAMED: Final = {"patience": "timeout"}
"""Options of earlier versions, and their names now."""

KEYS: Final = {
    *("options", "evaluations", "report", "delays"),
    *("done", "seconds", "model", "optimizer", "random"),  # of `Training.state_dict`
}

STEP: Final = TypeAdapter(StepMetrics)
"""Reads an iteration from text."""


def save(folder: Path, options: dict[str, Any], training: Training, run: Run) -> None:
    """Write the checkpoint of a run, at once.

    Args:
        folder: of the run.
        options: what the run was started with, plain values by name.
        training: between two iterations.
        run: what it has given so far.

    Raises:
        OSError: when it cannot be written.
    """
    stream = io.BytesIO()
    content = {
        "options": options,
        "evaluations": [asdict(evaluation) for evaluation in run.evaluations],
        "report": run.report,
        "delays": run.delays,
        **training.state_dict(),
    }
    torch.save(content, stream)
    write_whole(folder / CHECKPOINT, stream.getvalue())


def load(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises:
        CheckpointUnusable: when there is none, or it cannot be read.
        FolderInUse: when the run has finished.
    """
    path = checkpoint_in(folder)
    try:
        content = torch.load(path, weights_only=True)
        if KEYS - content.keys():
            raise ValueError("its content is of another kind")
    except (OSError, ValueError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise CheckpointUnusable(
            f"{path} cannot be read ({type(error).__name__}); start anew with --overwrite"
        ) from None
    return {**content, "options": {RENAMED.get(name, name): value for name, value in content["options"].items()}}


def check_options(saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse to go on with other options than the run was started with.

    Args:
        saved: those in the checkpoint.
        given: those on the command line now.

    Raises:
        CheckpointUnusable: naming the first that differs.
    """
    for name, value in given.items():
        if saved.get(name) != value:
            raise CheckpointUnusable(
                f"Invalid {name}: {value}; the run to go on with was started with {saved.get(name)}, leave it out"
            )


def prepare(folder: Path, checkpoint: dict[str, Any], run: Run) -> None:
    """Bring a folder to where its checkpoint is, and fill a run with what it had given by then.

    Rows of iterations after the checkpoint are dropped. The record of the part before is kept under another name.

    Raises:
        CheckpointUnusable: when the rows of the iterations before are not there.
    """
    done = checkpoint["done"]
    try:
        rows = list(csv.DictReader((folder / STEPS).read_text(encoding="utf-8").splitlines()))[:done]
        run.steps[:] = [_step(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointUnusable(f"{folder / STEPS} cannot be read ({error}); start anew with --overwrite") from None
    if [step.step for step in run.steps] != list(range(1, done + 1)):
        raise CheckpointUnusable(f"{folder / STEPS} lacks rows of the steps 1 to {done}; start anew with --overwrite")
    run.evaluations[:] = [Evaluation(**evaluation) for evaluation in checkpoint["evaluations"]]
    run.report, run.delays = checkpoint["report"], checkpoint["delays"]
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / STEPS, stream.getvalue().encode())
    record = folder / RECORD
    if record.exists():
        number = next(n for n in range(1, 10**6) if not record.with_stem(f"{record.stem}-{n}").exists())
        record.rename(record.with_stem(f"{record.stem}-{number}"))


def _step(row: dict[str, str]) -> StepMetrics:
    """Return an iteration from its row; its counts are not in the file."""
    try:
        return STEP.validate_python({name: row[column] or None for column, name in COLUMNS.items()})
    except ValidationError as error:
        wrong = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise ValueError(f"in a row: {wrong}") from None
