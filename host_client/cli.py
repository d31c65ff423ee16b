"""The command ``tngd``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from spu_link.tuning import tune_process

app = typer.Typer(
    name="tngd",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train neural networks by natural gradient through a stochastic processing unit (SPU).",
)
errors = Console(stderr=True)


@app.callback()
def before_every_command() -> None:
    """Train neural networks by natural gradient through a stochastic processing unit (SPU)."""
    tune_process()


class OptimizerChoice(StrEnum):
    """Values of --optimizer."""

    TNGD = "tngd"
    ADAM = "adam"
    SGD = "sgd"
    NGD = "ngd"
    NGD_CG = "ngd-cg"
    NGD_WOODBURY = "ngd-woodbury"
    KFAC = "kfac"


class StartChoice(StrEnum):
    """Values of --start."""

    KEEP = "keep"
    DRIVE = "drive"


class PrecisionChoice(StrEnum):
    """Values of --precision."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT16 = "int16"


class LossChoice(StrEnum):
    """Values of --on-loss."""

    RAISE = "raise"
    WAIT = "wait"
    DIGITAL = "digital"
    GRADIENT = "gradient"


class ThemeChoice(StrEnum):
    """Values of --theme."""

    LIGHT = "light"
    DARK = "dark"


class CurvatureChoice(StrEnum):
    """Values of --curvature."""

    EXACT = "exact"
    MC = "mc"
    EMPIRICAL = "empirical"


class TaskChoice(StrEnum):
    """What `train` takes."""

    MNIST = "mnist"


@contextmanager
def one_clear_message(out: Path | None = None) -> Iterator[None]:
    """Show what a person can act on as one message, exit code 1. The rest are bugs and shown whole.

    Ctrl-C ends with exit code 130 and SIGTERM with 143, both after closing sessions and ending a daemon of one's own.
    """
    from pydantic import ValidationError

    from host_client.local_daemon import DaemonFailed
    from host_client.modules import UnknownName
    from host_client.optimizers.solvers.checks import TooManyParameters
    from host_client.optimizers.solvers.kronecker_factors import LibraryMissing
    from host_client.performance.page import NoResults
    from host_client.record import UnreadableRecord
    from host_client.tasks.mnist import DataUnavailable
    from host_client.timeline.window import NoSuchWindow
    from spu_link.errors import LogUnusable, SpuError

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except ValidationError as error:
        for problem in error.errors():
            tell(".".join(str(part) for part in problem["loc"]) or "settings", problem["msg"])
    except SpuError as error:
        tell(type(error).__name__, f"{error}\n{next_step(error)}".strip())
    except (
        DaemonFailed,
        DataUnavailable,
        FloatingPointError,
        LibraryMissing,
        LogUnusable,
        NoResults,
        NoSuchWindow,
        OSError,
        TooManyParameters,
        UnknownName,
        UnreadableRecord,
    ) as error:
        tell(type(error).__name__, str(error))
    except KeyboardInterrupt:
        kept = f"; the iterations so far are in {out}" if out is not None else ""
        tell("interrupted", f"by Ctrl-C{kept}")
        raise typer.Exit(130) from None
    else:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
    raise typer.Exit(1)


def tell(name: str, message: str) -> None:
    """Print a message to standard error, its name in red."""
    errors.print(f"[red]{escape(name)}[/red]: {escape(message)}", highlight=False, soft_wrap=True)


def next_step(error: Exception) -> str:
    """What to do about an error of the device, where its own message does not say it."""
    from spu_link import errors as known

    match error:
        case known.DeviceBusy():
            return f"The device is free in {error.retry_after:.0f} s if its holder does not renew; try again then."
        case known.DeviceFault():
            return "The driver failed; the daemon's log says why. Restart `spu-server serve`."
        case known.CapacityExceeded():
            return "Use a smaller --batch-size, or start the daemon with larger --cells or --max-bytes."
        case known.DeviceHalted() | known.SessionExpired() | known.StaleSession() | known.DeadlineExceeded():
            return "Run the same command again; a new session starts afresh."
        case _:
            return ""


@app.command(
    epilog="""
    [b]Examples[/b]

    tngd train mnist                                   an emulator in this process

    spu-server serve --listen unix:/tmp/spu.sock       a daemon, in another terminal …

    tngd train mnist --spu unix:/tmp/spu.sock          … and training through it

    tngd train mnist --optimizer adam --out results/adam             to compare

    The folder --out then holds steps.csv (a row an iteration), run.json (settings, versions, results), run.png, and
    events.jsonl (what happened when), which `tngd timeline` shows.
    """
)
def train(
    task: Annotated[TaskChoice, typer.Argument(help="What to learn: mnist, handwritten digits with a small CNN.")],
    spu: Annotated[
        str,
        typer.Option(help="Device for tngd: unix:PATH or HOST:PORT of a daemon, or inproc: for one in this process."),
    ] = "inproc:",
    optimizer: Annotated[
        OptimizerChoice,
        typer.Option(
            help="tngd: natural gradient from the device. ngd, ngd-cg, ngd-woodbury: the same, solved digitally, by "
            "the matrix in full (small networks), conjugate gradients, or in sample space. kfac: Kronecker factors."
        ),
    ] = OptimizerChoice.TNGD,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Iterations, instead of --epochs.", show_default="as --epochs says")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 64,
    train_size: Annotated[int, typer.Option(min=1, max=50_000, help="Training images to use, of 50,000.")] = 10_000,
    test_size: Annotated[int, typer.Option(min=1, max=10_000, help="Test images to use, of 10,000.")] = 10_000,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate η, dimensionless.", show_default="0.001 adam, 0.1 sgd, 0.01 all others"),
    ] = None,
    damping: Annotated[
        float,
        typer.Option(min=0, help="Damping λ, in units of the curvature F: the device solves (F + λI) x = gradient."),
    ] = 0.01,
    analog_time: Annotated[
        float, typer.Option(min=0, help="Time t the device evolves under an upload before it is read, in τ.")
    ] = 50.0,
    delay: Annotated[
        float, typer.Option(min=0, help="Time t_d from a reading to the next upload taking hold, in τ.")
    ] = 0.0,
    noise: Annotated[
        float, typer.Option(min=0, help="Noise κ₀ of the device: the stationary covariance is κ₀ (F + λI)⁻¹.")
    ] = 0.0,
    start: Annotated[
        StartChoice,
        typer.Option(
            help="Cells at the instant an upload takes hold. keep: as they stand. drive: at the new gradient."
        ),
    ] = StartChoice.KEEP,
    precision: Annotated[
        PrecisionChoice,
        typer.Option(help="How the curvature travels to the device. 16 bits halve the upload; int16 errs least."),
    ] = PrecisionChoice.FLOAT32,
    freshness: Annotated[
        str,
        typer.Option(
            metavar="program|newest|K",
            help="Which readings a step may use. program: of its own program, so it waits. newest: what there is. "
            "K: at most K programs old; with 1 the device works while the next gradient is computed.",
        ),
    ] = "program",
    on_loss: Annotated[
        LossChoice,
        typer.Option(
            help="What a step does without the device. raise: end. wait: until it is back. digital: solve here. "
            "gradient: go along the gradient. All but raise reconnect as soon as can be."
        ),
    ] = LossChoice.RAISE,
    momentum: Annotated[
        float, typer.Option(min=0, max=0.999, help="Momentum β of the update, dimensionless; not with adam.")
    ] = 0.0,
    curvature: Annotated[
        CurvatureChoice,
        typer.Option(
            help="F. exact: generalised Gauss-Newton. mc: Fisher from one drawn label an image, d times fewer rows. "
            "empirical: from the true labels."
        ),
    ] = CurvatureChoice.EXACT,
    curvature_every: Annotated[
        int, typer.Option(min=1, help="Iterations from one curvature to the next; those between use the last one.")
    ] = 1,
    trust_region: Annotated[
        float | None,
        typer.Option(
            help="Radius δ of a step, as a divergence of the predictions; makes large learning rates safe.",
            show_default="no bound",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of network, batches and, with inproc:, the device's noise.")
    ] = 0,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the results; made if need be.")] = Path(
        "results/train"
    ),
) -> None:
    """Train a network and keep a record of every iteration.

    Ctrl-C ends the run; steps.csv keeps the iterations until then.
    """
    from contextlib import ExitStack

    from host_client.blocking import connect
    from host_client.report import comparison_table
    from host_client.runner import run, write_report
    from host_client.settings import Settings
    from host_client.tasks.mnist import mnist

    with one_clear_message(out / "steps.csv"), ExitStack() as stack:
        settings = Settings.model_validate(
            {
                "optimizer": optimizer.value,
                "epochs": epochs,
                "steps": steps,
                "batch_size": batch_size,
                "damping": damping,
                "analog_time": analog_time,
                "delay": delay,
                "noise": noise,
                "start": start.value,
                "precision": precision.value,
                "freshness": "this program" if freshness == "program" else freshness,
                "on_loss": on_loss.value,
                "momentum": momentum,
                "curvature": curvature.value,
                "curvature_every": curvature_every,
                "trust_region": trust_region,
                "seed": seed,
            }
            | ({} if lr is None else {"lr": lr})
        )
        options = {"seed": seed} if spu == "inproc:" else {}
        device = stack.enter_context(connect(spu, **options)) if optimizer is OptimizerChoice.TNGD else None
        data = mnist(train_size, test_size)
        console = Console()
        label = optimizer.value
        result = run(data, settings, device, label=label, console=console, csv=out / "steps.csv", record_in=out)
        sizes = f"{train_size:,} training and {test_size:,} test images, N = {result.parameters:,}"
        caption = f"b = {batch_size}, {sizes}, seed {seed}"
        title = f"{task.value} with {label}"
        write_report(out, "run", {label: result}, data, device, title=title, caption=caption)
        console.print(comparison_table({label: result}))
        console.print(f"Every iteration, settings and plot: {out}", highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for plot, JSON and CSV; made if need be.")] = Path(
        "results/demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over 10,000 training images, for each optimizer.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of network, batches and the device's noise.")] = 0,
) -> None:
    """Train a CNN on MNIST through a daemon of its own, Adam beside it, and show both.

    Starts `spu-server serve` with a free-running emulator as a separate process, and ends it afterwards.
    """
    from host_client.demo import demo as show

    with one_clear_message(out):
        show(out, epochs=epochs, seed=seed)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="Name of the experiment; `list` shows all of them.")],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the results.", show_default="results/NAME")
    ] = None,
    spu: Annotated[
        str | None,
        typer.Option(help="Device: unix:PATH or HOST:PORT of a daemon.", show_default="a daemon of its own"),
    ] = None,
) -> None:
    """Repeat an experiment: seeds, bands and a table, as CSV, JSON, Markdown and a plot."""
    from host_client import experiments, modules

    with one_clear_message(out):
        if name == "list":
            for known in modules.names(experiments):
                typer.echo(f"{known}: {(modules.find(experiments, known).__doc__ or '').splitlines()[0]}")
            return
        module = modules.find(experiments, name)
        module.run(out or Path("results") / name, spu, Console())


@app.command(
    epilog="""
    [b]Examples[/b]

    tngd timeline results/train                            four typical steps, as results/train/timeline.png

    tngd timeline results/train --steps 40:44 --out t.svg  steps 40 to 43

    tngd timeline results/train --from 1.5 --to 1.8        by time, in seconds since the record began

    tngd timeline results/train --trace trace.json         and all of it for https://ui.perfetto.dev

    [b]How to read it[/b]

    Down: a gradient leaves the host, is an upload on the link, and takes hold on the SPU.

    Along: the SPU evolves under that program, in its colour, until the next one takes hold.

    Up: a dot is a reading; it goes to the update that it made. Red: what was lost.

    t: how long a program had run when it was read. t_d: the delay from there to the next program.
    """
)
def timeline(
    run: Annotated[
        Path, typer.Argument(help="Folder that `tngd train --out` left; its events.jsonl is read.", exists=True)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The picture: .png, .svg or .pdf.", dir_okay=False, show_default="RUN/timeline.png"),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Steps A to B − 1, counted from 0; either may be left out.",
            show_default="four typical ones",
        ),
    ] = None,
    began: Annotated[
        float | None,
        typer.Option(
            "--from",
            help="First instant: seconds since the record began; with a stepped clock device time in τ.",
            show_default="as --steps says",
        ),
    ] = None,
    ended: Annotated[
        float | None, typer.Option("--to", help="Last instant, likewise.", show_default="as --steps says")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSON for ui.perfetto.dev or chrome://tracing: the whole run, or what --steps, --from and --to say.",
            dir_okay=False,
            show_default="none",
        ),
    ] = None,
    theme: Annotated[ThemeChoice, typer.Option(help="For a page with a light or a dark ground.")] = ThemeChoice.LIGHT,
) -> None:
    """Show what host, link and device did when: a picture of some steps, and a trace of the run.

    The axis is host time, device times are placed on it by what the clocks agreed on; a stepped clock's is device time.
    """
    from host_client.record import load
    from host_client.timeline import choose_window, draw, headline, lay_out, parse_steps, subtitle, write_trace

    if out is not None and out.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{out} must end in .png, .svg or .pdf", param_hint="--out")
    with one_clear_message():
        record = load(run)
        laid_out = lay_out(record)
        asked = parse_steps(steps) if steps is not None else None
        window = choose_window(laid_out, steps=asked, began=began, ended=ended)
        path = out or (run if run.is_dir() else run.parent) / "timeline.png"
        draw(
            laid_out,
            window,
            path,
            title=headline(laid_out, window),
            subtitle=subtitle(record),
            theme=theme.value,
        )
        typer.echo(f"{path}: {headline(laid_out, window)}")
        if trace is not None:
            whole = asked is None and began is None and ended is None
            count = write_trace(laid_out, trace, window=None if whole else window, about=record.header)
            typer.echo(f"{trace}: {count} trace events; open it at https://ui.perfetto.dev")
        for note in (*record.notes, *laid_out.notes):
            errors.print(f"[yellow]note[/yellow]: {escape(note)}", highlight=False, soft_wrap=True)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="Name of the benchmark; `list` shows all of them.")],
    json: Annotated[
        Path | None,
        typer.Option(help="File for ratios, results, versions and machine.", dir_okay=False, show_default="none"),
    ] = None,
) -> None:
    """Run a benchmark; its results are ratios of things timed in the same run."""
    import benchmarks
    from host_client import modules
    from host_client.bench import bench as run_benchmark

    with one_clear_message():
        if name == "list":
            for known in modules.names(benchmarks):
                typer.echo(known)
            return
        run_benchmark(name, json)


@app.command(
    epilog="""
    [b]Examples[/b]

    spu-server serve --record logs           a daemon that keeps a log

    tngd replay logs                         the same run again, on the same driver, in this process
    """
)
def replay(
    log: Annotated[Path, typer.Argument(help="Folder of the log, or one that holds this log alone.", exists=True)],
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Make the run of a device's event log again, and say whether its readings are the same, bit for bit.

    Exit code 0 if everything came out as in the log, else 1.
    """
    from host_client.replay import replay as run_again

    with one_clear_message():
        if not run_again(log, Console(stderr=json), json=json):
            raise typer.Exit(1)


@app.command()
def performance(
    results: Annotated[
        Path, typer.Argument(help="Folder with files of `tngd bench NAME --json FILE`.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The page; plots go to images beside it.")] = Path(
        "docs/performance.md"
    ),
) -> None:
    """Render benchmark results as a page with table and plots."""
    from host_client.performance import write_page

    with one_clear_message():
        missed = write_page(results, out)
        typer.echo(f"Written to {out}; targets missed: {', '.join(missed) or 'none'}")


if __name__ == "__main__":
    app()
