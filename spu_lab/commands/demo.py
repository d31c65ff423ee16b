"""``tngd demo``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from spu_lab.commands.command import MessageCommand

if TYPE_CHECKING:
    from host_client.blocking import Spu
    from spu_lab.studies.classification import ClassifierRun
    from spu_lab.studies.side_by_side import Solved

app = typer.Typer()

TARGETS = (0.9, 0.95)
"""Test accuracies whose steps are reported."""

CELLS = 257
"""Of the device for the equation: one for each parameter of the network."""


@app.command(cls=MessageCommand)
def demo(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for plot, JSON and CSV; made if need be. It may hold no run.")
    ] = Path("results/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --out holds.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of TNGD on the differential equation.")] = 120,
    digits: Annotated[int, typer.Option(min=1, help="Steps of each optimizer on MNIST, of 512 images.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Seed of networks, points, batches and the devices' noise.")] = 0,
) -> None:
    """Solve a differential equation and train on MNIST, each with TNGD through a device and with Adam.

    The equation is one that the natural gradient decides; Adam gets as much wall time on it. MNIST is the paper's
    example. The devices are free-running emulators, each in a `spu-server serve` that is started and ended here.
    """
    from spu_lab.result_folder import check_free, new_results

    check_free(out, "demo", overwrite=overwrite)

    with new_results(out, "demo"):
        compare(out, steps=steps, digits=digits, seed=seed)


def compare(out: Path, *, steps: int, digits: int, seed: int) -> None:
    """Run both optimizers on both problems: same start, same points and batches.

    Args:
        out: folder for ``demo.png``, ``demo.json``, and a CSV of the errors and of the losses.
        steps: of TNGD on the equation.
        digits: steps of each optimizer on MNIST.
        seed: of networks, points, batches and the devices' noise.

    Raises:
        DataUnavailable, DaemonFailed, SpuError: when the data, a daemon or a device is missing.
    """
    from host_client.blocking import connect
    from spu_lab.local_daemon import local_daemon
    from spu_lab.provenance import provenance
    from spu_lab.result_folder import write_json
    from spu_lab.studies.descent_report import summary, write_points
    from spu_lab.studies.front_page import front_page
    from spu_lab.studies.side_by_side import (
        ANALOG_TIME,
        BATCH,
        CLASSIFIERS,
        DAMPING,
        RATE,
        solve_side_by_side,
        train_side_by_side,
    )
    from spu_lab.tasks.mnist import mnist, standardised
    from spu_lab.training.report import save_whole
    from spu_lab.training.results import device_summary

    console = Console()
    task = replace(mnist(), name="MNIST", prepare=standardised)
    console.print(f"Starting an SPU daemon in a separate process: emulator of {CELLS} cells, free-running clock")
    daemon = local_daemon(seed=seed, options=["--cells", str(CELLS)], log=out / "daemon-equation.log")
    with daemon as address, connect(address) as spu:
        _report_ready(spu, console)
        solved = solve_side_by_side(spu, steps=steps, seed=seed, console=console)
        tau = 1e6 * spu.info.tau
    write_points(out / "equation.csv", [result.descent for result in solved.values()])
    console.print("Starting an SPU daemon for MNIST: emulator, free-running clock")
    with local_daemon(seed=seed, log=out / "daemon-mnist.log") as address, connect(address) as spu:
        _report_ready(spu, console)
        runs = train_side_by_side(task, spu, steps=digits, seed=seed, console=console)
        device = device_summary(spu.info)
    _write_losses(out / "mnist.csv", runs)
    outcomes = (describe_errors(solved), describe_accuracies(runs))
    tngd, adam = (values for _, values in CLASSIFIERS.values())
    captions = (
        f"{outcomes[0]} Network 2-64-1, {CELLS} parameters and cells, 900 + 120 points, λ = {DAMPING:g}, t = "
        f"{ANALOG_TIME.first:,.0f} to {ANALOG_TIME.last:,.0f} τ (τ = {tau:g} µs). Adam: η = {RATE:g}, cosine decay, as "
        f"much wall time. Seed {seed}.",
        f"{outcomes[1]} b = {BATCH}, {len(task.train):,} training images, N = 105,866. TNGD: SPRING "
        f"μ = {tngd['spring']:g}, λ = {tngd['damping']:g}, t = 50 τ, four drawn labels, η = {tngd['lr']:g}, trust "
        f"region {tngd['trust_region']:g}. Adam: η = {adam['lr']:g}. Both: linear decay. Free-running emulators in "
        "separate processes.",
    )
    title = "The natural gradient, read from a thermodynamic device, against Adam"
    save_whole(front_page(solved, runs, title=title, captions=captions), out / "demo.png")
    content = {
        **provenance(),
        "seed": seed,
        "device": device,
        "equation": [summary(result.descent) for result in solved.values()],
        "mnist": {label: {"settings": CLASSIFIERS[label][1], **asdict(run)} for label, run in runs.items()},
        "outcomes": outcomes,
    }
    write_json(out / "demo.json", {"status": "finished", **content})
    for outcome in outcomes:
        console.print(outcome, highlight=False)
    console.print(f"Plot, settings and every step: {out}", highlight=False)


def _write_losses(path: Path, runs: Mapping[str, ClassifierRun]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("method", "step", "loss", "duration_s"))
        for label, run in runs.items():
            rows = enumerate(zip(run.losses, run.seconds, strict=False), 1)
            writer.writerows((label, step, loss, seconds) for step, (loss, seconds) in rows)


def _report_ready(spu: Spu, console: Console) -> None:
    info = spu.info
    console.print(f"It is ready: τ = {1e6 * info.tau:g} µs, {info.rate:,.0f} τ a second, {info.cells:,} cells at most")


def describe_errors(solved: Mapping[str, Solved]) -> str:
    """Return the errors of the methods on the equation in words, with their steps and times."""
    ends = {method: result.descent.points[-1] for method, result in solved.items()}
    tngd, adam = ends["TNGD"], ends["Adam"]
    first = solved["TNGD"].descent.first_below(solved["Adam"].descent.best.error)
    passed = (
        f"; TNGD was at Adam's lowest error after {first.step:,} steps and {first.wall_seconds:.0f} s"
        if first is not None
        else ""
    )
    return (
        f"Relative L2 error: TNGD {tngd.error:.1e} in {tngd.step:,} steps and {tngd.wall_seconds:.0f} s, Adam "
        f"{adam.error:.1e} in {adam.step:,} and {adam.wall_seconds:.0f} s{passed}."
    )


def describe_accuracies(runs: Mapping[str, ClassifierRun]) -> str:
    """Return the steps of the methods to each of `TARGETS` in words, with their accuracies at the end."""
    ends = ", ".join(f"{label} {run.accuracy:.1%}" for label, run in runs.items())
    steps = len(next(iter(runs.values())).losses)
    parts = []
    for target in TARGETS:
        first = {label: run.first_with(target) for label, run in runs.items()}
        words = (f"{label} after {at.step} steps" if at else f"{label} never" for label, at in first.items())
        parts.append(f"{target:.0%} {', '.join(words)}")
    return f"MNIST test accuracy: {'; '.join(parts)}; in the end, after {steps}, {ends}."
