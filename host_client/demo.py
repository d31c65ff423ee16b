"""The demonstration: TNGD through a daemon of its own, compared with Adam, each at its tuned learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from host_client.blocking import connect
from host_client.local_daemon import local_daemon
from host_client.report import comparison_table
from host_client.runner import run, write_report
from host_client.settings import Settings
from host_client.tasks.mnist import mnist
from host_client.train import Run

EPOCHS = 2

TUNED = {"tngd": 0.03, "adam": 0.01}
"""Learning rates with the lowest validation loss of a grid of four for each, over three seeds: `tngd reproduce
first-light` makes the choice again."""

EVALUATE_EVERY = 39
"""Iterations between evaluations: a quarter of an epoch."""


def demo(out: Path, *, epochs: int = EPOCHS, seed: int = 0, console: Console | None = None) -> Mapping[str, Run]:
    """Train the reference network on MNIST with TNGD, then with Adam: same start, same batches, same iterations.

    Args:
        out: folder for ``demo.png``, ``demo.json`` and a CSV of each run's iterations.
        epochs: passes over the 10,000 training images.
        seed: of the network's start, the batches and the device's noise.
        console: where to show it; standard output by default.

    Raises:
        DataUnavailable, DaemonFailed, SpuError: when the data, the daemon or the device is missing.
    """
    console = console or Console()
    task = mnist()
    choices = {
        "TNGD": Settings(optimizer="tngd", lr=TUNED["tngd"], epochs=epochs, seed=seed),
        "Adam": Settings(optimizer="adam", lr=TUNED["adam"], epochs=epochs, seed=seed),
    }
    console.print("Starting an SPU daemon in a separate process: emulator, free-running clock")
    with local_daemon(seed=seed, log=out / "daemon.log") as address, connect(address) as spu:
        info = spu.info
        console.print(
            f"It is ready: τ = {1e6 * info.tau:g} µs, {info.rate:,.0f} τ a second, {info.cells:,} cells at most"
        )
        runs = {
            label: run(
                task,
                settings,
                spu,
                label=label,
                console=console,
                csv=out / f"{label.lower()}.csv",
                evaluate_every=EVALUATE_EVERY,
            )
            for label, settings in choices.items()
        }
        write_report(
            out,
            "demo",
            runs,
            task,
            spu,
            title="A CNN on MNIST, trained through a thermodynamic device and by Adam",
            caption=f"{standing(runs)}\n"
            f"Each η: lowest validation loss of a grid of four. b = 64, {len(task.train):,} training and "
            f"{len(task.test):,} test images, N = {runs['TNGD'].parameters:,}, seed {seed}.\n"
            f"The device is a free-running emulator in a separate process, over gRPC; τ = {1e6 * info.tau:g} µs.",
        )
    console.print(comparison_table(runs, "MNIST, same start and same batches"))
    console.print(standing(runs), highlight=False)
    console.print(f"Plot, settings and every iteration: {out}", highlight=False)
    return runs


def standing(runs: Mapping[str, Run]) -> str:
    """Say which run is ahead at the end, in test loss and in test accuracy, with the numbers."""
    tests = {label: run.final("test") for label, run in runs.items()}
    by_loss = sorted(tests, key=lambda label: tests[label].loss)
    by_accuracy = sorted(tests, key=lambda label: -tests[label].accuracy)
    losses = ", ".join(f"{label} {tests[label].loss:.3f}" for label in by_loss)
    accuracies = ", ".join(f"{label} {tests[label].accuracy:.1%}" for label in by_accuracy)
    ahead = f"{by_loss[0]} is ahead" if by_loss[0] == by_accuracy[0] else f"{by_loss[0]} is ahead in loss"
    return f"At the end {ahead}: test loss {losses}; test accuracy {accuracies}."
