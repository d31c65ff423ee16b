"""The demonstration: TNGD through a daemon of its own, and Adam beside it."""

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

EPOCHS = 3
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
        "TNGD": Settings(optimizer="tngd", epochs=epochs, seed=seed),
        "Adam": Settings(optimizer="adam", epochs=epochs, seed=seed),
    }
    console.print("Starting an SPU daemon in a process of its own: emulator, free-running clock")
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
            caption=f"The paper's settings for both. b = 64, {len(task.train):,} training and {len(task.test):,} test "
            f"images, N = {runs['TNGD'].parameters:,}, seed {seed}.\n"
            f"The device is a free-running emulator in a process of its own, over gRPC; τ = {1e6 * info.tau:g} µs.",
        )
    console.print(comparison_table(runs, "MNIST, same start and same batches"))
    console.print(f"Plot, settings and every iteration: {out}", highlight=False)
    return runs
