"""First light: one epoch of MNIST through a device, TNGD and Adam, each at the paper's and at its best learning rate.

The best learning rate is the one with the lowest mean validation loss over all seeds; the test set is only reported.
"""

from __future__ import annotations

import csv
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console

from host_client.blocking import Spu, connect
from host_client.experiments.tables import show_and_write
from host_client.local_daemon import local_daemon
from host_client.optimizers import OptimizerName
from host_client.provenance import provenance
from host_client.report import plot_runs
from host_client.result_folder import write_json
from host_client.results import device_summary, summary
from host_client.runner import run as run_once
from host_client.settings import LEARNING_RATES, Settings
from host_client.tasks.mnist import mnist
from host_client.tasks.task import Task
from host_client.train import Run, Split

SEEDS = (0, 1, 2)

GRIDS: dict[OptimizerName, tuple[float, ...]] = {
    "tngd": (0.003, 0.01, 0.03, 0.1),
    "adam": (0.001, 0.003, 0.01, 0.03),
}
"""Learning rates tried, as many for each; each grid holds the paper's and has its best inside."""

NAMES: dict[OptimizerName, str] = {"tngd": "TNGD", "adam": "Adam"}
EVALUATE_EVERY = 40


@dataclass(frozen=True)
class Arm:
    """One optimizer at one learning rate, over all seeds. A run that diverged is missing from `runs`."""

    optimizer: OptimizerName
    lr: float
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Name for people."""
        return f"{NAMES[self.optimizer]}, η = {self.lr:g}"

    def mean(self, split: Split, name: str) -> float:
        """Mean over seeds of the final ``loss`` or ``accuracy``; infinite where a run diverged."""
        return fmean(self._finals(split, name)) if len(self.runs) == len(SEEDS) else math.inf

    def spread(self, split: Split, name: str) -> float:
        """Sample standard deviation over seeds of the final ``loss`` or ``accuracy``."""
        return stdev(self._finals(split, name)) if len(self.runs) > 1 else math.nan

    def _finals(self, split: Split, name: str) -> list[float]:
        return [getattr(run.final(split), name) for run in self.runs]


def run(out: Path, spu: str | None, console: Console) -> None:
    """Run all seeds and learning rates, choose by validation, report on the test set.

    Args:
        out: folder for ``first-light.csv``, ``.json``, ``.md`` and ``.png``.
        spu: address of a device; None starts a free-running daemon with the emulator.
        console: where to show it.

    Raises:
        DataUnavailable, DaemonFailed, SpuError: when the data, the daemon or the device is missing.
    """
    task = mnist()
    with ExitStack() as stack:
        device = stack.enter_context(connect(spu or stack.enter_context(local_daemon(log=out / "daemon.log"))))
        arms = [_arm(task, device, name, lr, console) for name, grid in GRIDS.items() for lr in grid]
        info = {"address": device.address, **device_summary(device.info)}
    best = {
        name: min((a for a in arms if a.optimizer == name), key=lambda a: a.mean("validation", "loss"))
        for name in GRIDS
    }
    chosen = {"paper's": [a for a in arms if a.lr == LEARNING_RATES[a.optimizer]], "best": list(best.values())}

    _write_csv(out / "first-light.csv", arms)
    rows = [_row(arm, kind) for kind, those in chosen.items() for arm in those]
    columns = ("optimizer", "η", "chosen", "test loss", "test accuracy", "time a step")
    show_and_write(
        out / "first-light.md",
        columns,
        rows,
        console,
        title=f"First light: MNIST, one epoch, mean ± std over {len(SEEDS)} seeds",
    )
    content = {
        "status": "finished",
        **provenance(),
        "device": info,
        "seeds": SEEDS,
        "grids": GRIDS,
        "arms": [_arm_summary(arm, chosen) for arm in arms],
    }
    lines = {f"{arm.label} ({kind})": arm.runs for kind, those in chosen.items() for arm in those}
    plot_runs(
        lines,
        out / "first-light.png",
        title="First light: one epoch of MNIST through a free-running device",
        caption=f"Median, and min to max, over {len(SEEDS)} seeds. TNGD: λ = 0.01, t = 50 τ, t_d ≥ 0. b = 64, "
        "10,000 training images. Best η: lowest validation loss of a grid of 4.",
    )
    write_json(out / "first-light.json", content)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)


def _arm(task: Task, spu: Spu, optimizer: OptimizerName, lr: float, console: Console) -> Arm:
    runs = []
    for seed in SEEDS:
        settings = Settings(optimizer=optimizer, lr=lr, seed=seed)
        label = f"{NAMES[optimizer]}, η = {lr:g}, seed {seed}"
        try:
            runs.append(
                run_once(
                    task,
                    settings,
                    spu,
                    label=label,
                    console=console,
                    evaluate_every=EVALUATE_EVERY,
                    splits=("validation", "test"),
                    each_evaluation=False,
                )
            )
        except FloatingPointError as error:
            console.print(f"{label}: diverged, {error}", highlight=False)
    return Arm(optimizer, lr, tuple(runs))


def _row(arm: Arm, kind: str) -> list[str]:
    return [
        NAMES[arm.optimizer],
        f"{arm.lr:g}",
        kind,
        f"{arm.mean('test', 'loss'):.4f} ± {arm.spread('test', 'loss'):.4f}",
        f"{arm.mean('test', 'accuracy'):.2%} ± {100 * arm.spread('test', 'accuracy'):.2f}",
        f"{1e3 * fmean(run.seconds_per_iteration for run in arm.runs):.1f} ms",
    ]


def _arm_summary(arm: Arm, chosen: dict[str, list[Arm]]) -> dict[str, object]:
    return {
        "optimizer": arm.optimizer,
        "lr": arm.lr,
        "reported_as": [kind for kind, those in chosen.items() if arm in those],
        "diverged": len(SEEDS) - len(arm.runs),
        "runs": [summary(run) for run in arm.runs],
    }


def _write_csv(path: Path, arms: list[Arm]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ("optimizer", "lr", "seed", "step", "epoch", "loss", "duration_s", "uploaded_bytes", "staleness_tau")
        )
        for arm in arms:
            for one in arm.runs:
                for s in one.steps:
                    head = (arm.optimizer, arm.lr, one.settings.seed)
                    writer.writerow((*head, s.step, s.epoch, s.loss, s.duration, s.uploaded, s.staleness))
