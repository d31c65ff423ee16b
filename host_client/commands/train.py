"""``tngd train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from host_client.commands.messages import one_clear_message

app = typer.Typer()


@app.command(
    epilog="""
    [b]Examples[/b]

    tngd train mnist                                   an emulator in this process

    spu-server serve --listen unix:/tmp/spu.sock       a daemon, in another terminal …

    tngd train mnist --spu unix:/tmp/spu.sock          … and training through it

    tngd train mnist --embedding sample                576 cells do for 105,866 parameters

    tngd train mnist --optimizer adam --out results/adam             to compare

    The folder --out then holds steps.csv (a row an iteration), run.png, run.json
    (settings, versions, results) and events.jsonl, which `tngd timeline` shows.
    """
)
def train(
    context: typer.Context,
    task: Annotated[
        Literal["mnist"], typer.Argument(help="What to learn: mnist, handwritten digits with a small CNN.")
    ],
    spu: Annotated[
        list[str],
        typer.Option(
            help="Device for tngd: unix:PATH or HOST:PORT of a daemon, or inproc: for one in this process. Several of "
            "them work side by side, with the embeddings block and kronecker."
        ),
    ] = ["inproc:"],  # noqa: B006 - typer reads it, nobody changes it
    embedding: Annotated[
        Literal["direct", "sample", "block", "kronecker"],
        typer.Option(
            help="What the device's cells stand for. direct: parameters. sample: images times outputs, however many "
            "parameters. block: the parameters of one layer at a time. kronecker: rows of K-FAC's factors."
        ),
    ] = "direct",
    optimizer: Annotated[
        Literal["tngd", "adam", "sgd", "ngd", "ngd-cg", "ngd-woodbury", "kfac"],
        typer.Option(
            help="tngd: natural gradient from the device. ngd, ngd-cg, ngd-woodbury: the same, solved digitally, by "
            "the matrix in full (small networks), conjugate gradients, or in sample space. kfac: Kronecker factors."
        ),
    ] = "tngd",
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
        Literal["keep", "drive"],
        typer.Option(
            help="Cells at the instant an upload takes hold. keep: as they stand. drive: at the new gradient."
        ),
    ] = "keep",
    precision: Annotated[
        Literal["float32", "float16", "bfloat16", "int16"],
        typer.Option(help="How the curvature travels to the device. 16 bits halve the upload; int16 errs least."),
    ] = "float32",
    freshness: Annotated[
        str,
        typer.Option(
            metavar="program|newest|K",
            help="Which readings a step may use. program: of its own program, so it waits. newest: what there is. "
            "K: at most K programs old; with 1 the device works while the next gradient is computed.",
        ),
    ] = "program",
    on_loss: Annotated[
        Literal["raise", "wait", "digital", "gradient"],
        typer.Option(
            help="What a step does without the device. raise: end. wait: until it is back, or --patience is over. "
            "digital: solve here. gradient: go along the gradient. All but raise reconnect as soon as can be."
        ),
    ] = "raise",
    patience: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Longest that a step waits for a lost device, or for a reading beyond its device time, in seconds.",
        ),
    ] = 60.0,
    momentum: Annotated[
        float, typer.Option(min=0, max=0.999, help="Momentum β of the update, dimensionless; not with adam.")
    ] = 0.0,
    curvature: Annotated[
        Literal["exact", "mc", "empirical"],
        typer.Option(
            help="F. exact: generalised Gauss-Newton. mc: Fisher from one drawn label an image, d times fewer rows. "
            "empirical: from the true labels."
        ),
    ] = "exact",
    curvature_every: Annotated[
        int, typer.Option(min=1, help="Iterations from one curvature to the next; those between use the last one.")
    ] = 1,
    trust_region: Annotated[
        float | None,
        typer.Option(
            help="Bound δ on a step, momentum included, as a divergence of the predictions.",
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
        # An option that has the name of a setting is that setting.
        given = {name: value for name, value in context.params.items() if name in Settings.model_fields}
        given["freshness"] = _freshness(freshness)
        if lr is None:
            del given["lr"]  # each optimizer has its own
        settings = Settings.model_validate(given)
        device = None
        if optimizer == "tngd":
            options: dict[str, Any] = {"seed": seed} if set(spu) == {"inproc:"} else {}
            device = stack.enter_context(connect(spu, embedding=embedding, **options))
        data = mnist(train_size, test_size)
        console = Console()
        result = run(data, settings, device, label=optimizer, console=console, csv=out / "steps.csv", record_in=out)
        sizes = f"{train_size:,} training and {test_size:,} test images, N = {result.parameters:,}"
        caption = f"b = {batch_size}, {sizes}, seed {seed}"
        title = f"{task} with {optimizer}"
        write_report(out, "run", {optimizer: result}, data, device, title=title, caption=caption)
        console.print(comparison_table({optimizer: result}))
        console.print(f"Every iteration, settings and plot: {out}", highlight=False)


def _freshness(text: str) -> str | int:
    """The setting that --freshness says."""
    if text.isdecimal():
        return int(text)
    if text not in ("program", "newest"):
        raise typer.BadParameter(
            f"{text!r} is neither program, newest nor a number of programs", param_hint="--freshness"
        )
    return "this program" if text == "program" else text
