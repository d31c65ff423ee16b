"""``tngd demo``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from spu_lab.commands.command import MessageCommand

if TYPE_CHECKING:
    from spu_lab.training.loop import Run

app = typer.Typer()

TUNED = {"tngd": 0.03, "adam": 0.01}
"""Learning rates with the lowest validation loss of a grid of four for each, over three seeds."""

EVALUATE_EVERY = 39
"""Iterations between evaluations: a quarter of an epoch."""


@app.command(cls=MessageCommand)
def demo(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for plot, JSON and CSV; made if need be. It may hold no run.")
    ] = Path("results/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --out holds.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over 10,000 training images, for each optimizer.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of network, batches and the device's noise.")] = 0,
) -> None:
    """Train a CNN on MNIST with TNGD through a separate daemon, and compare it with Adam.

    Starts `spu-server serve` with a free-running emulator as a separate process, and ends it afterwards.
    """
    from spu_lab.result_folder import check_free, new_results

    check_free(out, "demo", overwrite=overwrite)

    with new_results(out, "demo"):
        compare(out, epochs=epochs, seed=seed)


def compare(out: Path, *, epochs: int, seed: int) -> None:
    """Train the reference network on MNIST with TNGD, then with Adam: same start, same batches, same iterations.

    Args:
        out: folder for ``demo.png``, ``demo.json`` and a CSV of each run's iterations.
        epochs: passes over the 10,000 training images.
        seed: of the network's start, the batches and the device's noise.

    Raises:
        DataUnavailable, DaemonFailed, SpuError: when the data, the daemon or the device is missing.
    """
    from host_client.blocking import connect
    from spu_lab.local_daemon import local_daemon
    from spu_lab.tasks.mnist import mnist
    from spu_lab.training.report import comparison_table
    from spu_lab.training.runner import run, write_report
    from spu_lab.training.settings import Settings

    console = Console()
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


def standing(runs: Mapping[str, Run]) -> str:
    """Say which run is ahead at the end, in test loss and in test accuracy, with the numbers."""
    tests = {label: run.final("test") for label, run in runs.items()}
    by_loss = sorted(tests, key=lambda label: tests[label].loss)
    by_accuracy = sorted(tests, key=lambda label: -tests[label].accuracy)
    losses = ", ".join(f"{label} {tests[label].loss:.3f}" for label in by_loss)
    accuracies = ", ".join(f"{label} {tests[label].accuracy:.1%}" for label in by_accuracy)
    ahead = f"{by_loss[0]} is ahead" if by_loss[0] == by_accuracy[0] else f"{by_loss[0]} is ahead in loss"
    return f"At the end {ahead}: test loss {losses}; test accuracy {accuracies}."
