"""``tngd demo``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from spu_lab.commands.command import MessageCommand

if TYPE_CHECKING:
    from host_client.blocking import Spu
    from spu_lab.studies.side_by_side import Solved
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
    steps: Annotated[int, typer.Option(min=1, help="Steps of TNGD on the differential equation.")] = 120,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over 10,000 training images, for each optimizer.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of networks, points, batches and the devices' noise.")] = 0,
) -> None:
    """Solve a differential equation and train on MNIST, each with TNGD through a device and with Adam.

    The equation is one that the natural gradient decides; Adam gets as much wall time on it. MNIST is the paper's
    example. The devices are free-running emulators, each in a `spu-server serve` that is started and ended here.
    """
    from spu_lab.result_folder import check_free, new_results

    check_free(out, "demo", overwrite=overwrite)

    with new_results(out, "demo"):
        compare(out, steps=steps, epochs=epochs, seed=seed)


CELLS = 257
"""Of the device for the equation: one for each parameter of the network."""


def compare(out: Path, *, steps: int, epochs: int, seed: int) -> None:
    """Run both optimizers on both problems: same start, same points and batches.

    Args:
        out: folder for ``demo.png``, ``demo.json``, and a CSV of the errors and of each run's iterations.
        steps: of TNGD on the equation.
        epochs: passes over the 10,000 training images.
        seed: of networks, points, batches and the devices' noise.

    Raises:
        DataUnavailable, DaemonFailed, SpuError: when the data, a daemon or a device is missing.
    """
    from host_client.blocking import connect
    from spu_lab.local_daemon import local_daemon
    from spu_lab.result_folder import write_json
    from spu_lab.studies.descent_report import summary, write_points
    from spu_lab.studies.front_page import front_page
    from spu_lab.studies.side_by_side import solve_side_by_side
    from spu_lab.tasks.mnist import mnist
    from spu_lab.training.report import comparison_table, save_whole
    from spu_lab.training.runner import content_of, describe_runs, run
    from spu_lab.training.settings import Settings

    console = Console()
    task = mnist()
    console.print(f"Starting an SPU daemon in a separate process: emulator of {CELLS} cells, free-running clock")
    daemon = local_daemon(seed=seed, options=["--cells", str(CELLS)], log=out / "daemon-equation.log")
    with daemon as address, connect(address) as spu:
        _say_ready(spu, console)
        solved = solve_side_by_side(spu, steps=steps, seed=seed, console=console)
    write_points(out / "equation.csv", [one.descent for one in solved.values()])
    choices = {
        "TNGD": Settings(optimizer="tngd", lr=TUNED["tngd"], epochs=epochs, seed=seed),
        "Adam": Settings(optimizer="adam", lr=TUNED["adam"], epochs=epochs, seed=seed),
    }
    console.print("Starting an SPU daemon for MNIST: emulator, free-running clock")
    with local_daemon(seed=seed, log=out / "daemon.log") as address, connect(address) as spu:
        _say_ready(spu, console)
        runs = {
            label: run(
                task,
                settings,
                spu,
                label=f"MNIST, {label}",
                console=console,
                csv=out / f"{label.lower()}.csv",
                evaluate_every=EVALUATE_EVERY,
            )
            for label, settings in choices.items()
        }
        content = content_of(runs, task, spu)
        tau = 1e6 * spu.info.tau
    outcomes = (describe_errors(solved), standing(runs))
    captions = (
        f"{outcomes[0]} Network 2-64-1, {CELLS} parameters and cells, 900 + 120 points, λ = 1e-6, t = 0.1 to 0.3 s "
        f"(τ = {tau:g} µs). Adam: η = 0.01, cosine decay, as much wall time. Seed {seed}.",
        "\n".join(
            [
                outcomes[1],
                *describe_runs(runs),
                f"b = 64, {len(task.train):,} training and {len(task.test):,} test images, N = "
                f"{runs['TNGD'].parameters:,}. Devices: free-running emulators in separate processes, over gRPC.",
            ]
        ),
    )
    title = "The natural gradient, read from a thermodynamic device, against Adam"
    save_whole(front_page(solved, runs, title=title, captions=captions), out / "demo.png")
    equation = {"seed": seed, "runs": [summary(one.descent) for one in solved.values()]}
    write_json(out / "demo.json", {"status": "finished", **content, "equation": equation})
    console.print(comparison_table(runs, "MNIST, same start and same batches"))
    for outcome in outcomes:
        console.print(outcome, highlight=False)
    console.print(f"Plot, settings and every iteration: {out}", highlight=False)


def _say_ready(spu: Spu, console: Console) -> None:
    info = spu.info
    console.print(f"It is ready: τ = {1e6 * info.tau:g} µs, {info.rate:,.0f} τ a second, {info.cells:,} cells at most")


def describe_errors(solved: Mapping[str, Solved]) -> str:
    """Say how far each method came on the equation, with the numbers."""
    ends = {method: one.descent.points[-1] for method, one in solved.items()}
    tngd, adam = ends["TNGD"], ends["Adam"]
    first = solved["TNGD"].descent.first_below(solved["Adam"].descent.best.error)
    passed = (
        f"; TNGD was at Adam's lowest error after {first.step:,} steps and {first.wall_seconds:.0f} s"
        if first is not None
        else ""
    )
    return (
        f"Relative L2 error after {tngd.wall_seconds:.0f} s: TNGD {tngd.error:.1e} in {tngd.step:,} steps, Adam "
        f"{adam.error:.1e} in {adam.step:,}{passed}."
    )


def standing(runs: Mapping[str, Run]) -> str:
    """Say which run is ahead at the end, in test loss and in test accuracy, with the numbers."""
    tests = {label: run.final("test") for label, run in runs.items()}
    by_loss = sorted(tests, key=lambda label: tests[label].loss)
    by_accuracy = sorted(tests, key=lambda label: -tests[label].accuracy)
    losses = ", ".join(f"{label} {tests[label].loss:.3f}" for label in by_loss)
    accuracies = ", ".join(f"{label} {tests[label].accuracy:.1%}" for label in by_accuracy)
    ahead = f"{by_loss[0]} is ahead" if by_loss[0] == by_accuracy[0] else f"{by_loss[0]} is ahead in loss"
    return f"At the end {ahead}: test loss {losses}; test accuracy {accuracies}."
