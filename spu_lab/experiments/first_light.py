"""First light: one epoch of MNIST through a device, TNGD and Adam, each at the paper's and at its best learning rate.

The best learning rate is the one with the lowest mean validation loss over all seeds; the test set is only reported.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console

from host_client.optimizers import OptimizerName
from spu_lab.local_daemon import local_daemon
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.sweeps import Arm, ArmResult, sweep
from spu_lab.studies.tables import show_and_write
from spu_lab.tasks.mnist import mnist
from spu_lab.training.loop import Split
from spu_lab.training.report import plot_runs
from spu_lab.training.results import summary
from spu_lab.training.settings import LEARNING_RATES

SEEDS = (0, 1, 2)

GRIDS: dict[OptimizerName, tuple[float, ...]] = {
    "tngd": (0.003, 0.01, 0.03, 0.1),
    "adam": (0.001, 0.003, 0.01, 0.03),
}
"""Learning rates tried, as many for each; each grid holds the paper's and has its best inside."""

NAMES: dict[OptimizerName, str] = {"tngd": "TNGD", "adam": "Adam"}
EVALUATE_EVERY = 40

ARMS = [
    Arm(f"{NAMES[name]}, η = {lr:g}", lr, {"optimizer": name, "lr": lr}) for name, grid in GRIDS.items() for lr in grid
]


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
        address = spu or stack.enter_context(local_daemon(log=out / "daemon.log"))
        splits: tuple[Split, ...] = ("validation", "test")
        every = {"evaluate_every": EVALUATE_EVERY, "splits": splits}
        results = sweep(task, ARMS, {}, SEEDS, out, console, address=address, **every)
    by_optimizer = {name: [r for r in results if r.arm.settings["optimizer"] == name] for name in GRIDS}
    chosen = {
        "paper's": [r for r in results if r.arm.value == LEARNING_RATES[r.arm.settings["optimizer"]]],
        "best": [min(those, key=lambda r: _mean(r, "validation", "loss")) for those in by_optimizer.values()],
    }

    _write_csv(out / "first-light.csv", results)
    show_and_write(
        out / "first-light.md",
        ("optimizer", "η", "chosen", "test loss", "test accuracy", "time a step"),
        [_row(result, kind) for kind, those in chosen.items() for result in those],
        console,
        title=f"First light: MNIST, one epoch, mean ± std over {len(SEEDS)} seeds",
    )
    content = {
        "status": "finished",
        **provenance(),
        "device": address,
        "seeds": SEEDS,
        "grids": GRIDS,
        "arms": [_summary(result, chosen) for result in results],
    }
    plot_runs(
        {f"{r.arm.label} ({kind})": r.finished for kind, those in chosen.items() for r in those},
        out / "first-light.png",
        title="First light: one epoch of MNIST through a free-running device",
        caption=f"Median, and min to max, over {len(SEEDS)} seeds. TNGD: λ = 0.01, t = 50 τ, t_d ≥ 0. b = 64, "
        "10,000 training images. Best η: lowest validation loss of a grid of 4.",
    )
    write_json(out / "first-light.json", content)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)


def _mean(result: ArmResult, split: Split, name: str) -> float:
    """Return the mean over seeds of the final ``loss`` or ``accuracy``; infinite where a run diverged."""
    return fmean(result.finals(name, split)) if all(result.runs) else math.inf


def _row(result: ArmResult, kind: str) -> list[str]:
    ends = [result.finals(name) for name in ("loss", "accuracy")]
    loss_spread, accuracy_spread = (stdev(values) if len(values) > 1 else math.nan for values in ends)
    return [
        NAMES[result.arm.settings["optimizer"]],
        f"{result.arm.value:g}",
        kind,
        f"{_mean(result, 'test', 'loss'):.4f} ± {loss_spread:.4f}",
        f"{_mean(result, 'test', 'accuracy'):.2%} ± {100 * accuracy_spread:.2f}",
        f"{1e3 * fmean(run.seconds_per_iteration for run in result.finished):.1f} ms",
    ]


def _summary(result: ArmResult, chosen: Mapping[str, Sequence[ArmResult]]) -> dict[str, object]:
    return {
        **result.arm.settings,
        "reported_as": [kind for kind, those in chosen.items() if result in those],
        "diverged": result.runs.count(None),
        "runs": [summary(run) for run in result.finished],
    }


def _write_csv(path: Path, results: Sequence[ArmResult]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ("optimizer", "lr", "seed", "step", "epoch", "loss", "duration_s", "uploaded_bytes", "staleness_tau")
        )
        for run in (run for result in results for run in result.finished):
            head = (run.settings.optimizer, run.settings.lr, run.settings.seed)
            writer.writerows((*head, s.step, s.epoch, s.loss, s.duration, s.uploaded, s.staleness) for s in run.steps)
