"""``tngd train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from host_client.commands.command import Command
from host_client.commands.messages import tell_interrupted
from host_client.result_folder import interrupted_run

app = typer.Typer()


@app.command(
    cls=Command,
    epilog="""
    [b]Examples[/b]

    tngd train mnist                                   an emulator in this process

    spu-server serve --listen unix:/tmp/spu.sock       a daemon, in another terminal …

    tngd train mnist --spu unix:/tmp/spu.sock          … and training through it

    tngd train mnist --embedding sample                576 cells do for 105,866 parameters

    tngd train mnist --optimizer adam --out results/adam             to compare

    The folder --out then holds steps.csv (a row an iteration), run.png, run.json
    (status, settings, versions, results) and events.jsonl, which `tngd timeline`
    shows; until the run has finished also checkpoint.pt, for --resume.
    """,
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
        float, typer.Option(min=0, help="Time t_d from a reading to the next upload taking effect, in τ.")
    ] = 0.0,
    noise: Annotated[
        float, typer.Option(min=0, help="Noise κ₀ of the device: the stationary covariance is κ₀ (F + λI)⁻¹.")
    ] = 0.0,
    start: Annotated[
        Literal["keep", "drive"],
        typer.Option(
            help="Cells at the instant an upload takes effect. keep: as they stand. drive: at the new gradient."
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
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for the results; made if need be. It may hold no other run.")
    ] = Path("results/train"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --out holds.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, which was interrupted, with its own options; only --spu may differ.",
        ),
    ] = False,
) -> None:
    """Train a network and keep a record of every iteration.

    Ctrl-C ends the run after the iteration that is under way, and a second one at once. With --resume it goes on.
    """
    from host_client.result_folder import check_free, checkpoint_in

    given = {name: value for name, value in context.params.items() if name not in ("out", "overwrite", "resume")}
    if resume and overwrite:
        raise typer.BadParameter("it removes what --resume would go on from", param_hint="--overwrite")
    given["freshness"] = _freshness(freshness)
    if not resume:
        check_free(out, "run", overwrite=overwrite)
        _train(given, out, None)
        return

    checkpoint_in(out)

    from host_client import checkpoint

    saved = checkpoint.load(out)
    sources = {name: context.get_parameter_source(name) for name in given}
    explicit = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    checkpoint.check_options(saved["options"], {name: given[name] for name in explicit - {"spu"}})
    _train({**saved["options"], **({"spu": spu} if "spu" in explicit else {})}, out, saved)


def _train(given: dict[str, Any], out: Path, saved: dict[str, Any] | None) -> None:
    """Train with these options, from a checkpoint on if there is one."""
    from contextlib import ExitStack

    from host_client.blocking import connect
    from host_client.report import comparison_table
    from host_client.runner import run_in
    from host_client.settings import Settings
    from host_client.stopping import Stop
    from host_client.tasks.mnist import mnist

    # An option that has the name of a setting is that setting; without a learning rate each optimizer has its own.
    chosen = {name: value for name, value in given.items() if name in Settings.model_fields}
    settings = Settings.model_validate({name: value for name, value in chosen.items() if (name, value) != ("lr", None)})
    name, console = given["optimizer"], Console()
    with ExitStack() as stack:
        device = None
        if name == "tngd":
            own: dict[str, Any] = {"seed": given["seed"]} if set(given["spu"]) == {"inproc:"} else {}
            device = stack.enter_context(connect(given["spu"], embedding=given["embedding"], **own))
        data = mnist(given["train_size"], given["test_size"])
        stop = stack.enter_context(Stop())
        result = run_in(
            out,
            data,
            settings,
            device,
            label=name,
            console=console,
            options=given,
            resume=saved,
            stopped=lambda: stop.number is not None,
        )
    total = settings.total_steps(data.batches_per_epoch(settings.batch_size))
    if len(result.steps) < total:
        assert stop.number is not None
        then = f"go on with `tngd train {given['task']} --resume --out {shlex.quote(str(out))}`"
        tell_interrupted(stop.number, f"after step {len(result.steps)} of {total}; {interrupted_run(out)}; {then}")
        raise typer.Exit(128 + stop.number)
    sizes = f"{given['train_size']:,} training and {given['test_size']:,} test images, N = {result.parameters:,}"
    console.print(comparison_table({name: result}, f"{given['task']}: {sizes}"))
    console.print(f"Every iteration, settings and plot: {out}", highlight=False, soft_wrap=True)
    if stop.number is not None:
        tell_interrupted(stop.number, f"when the run had finished; {out} holds all of it")
        raise typer.Exit(128 + stop.number)


def _freshness(text: str) -> str | int:
    """Return the setting that --freshness says."""
    if text.isdecimal():
        return int(text)
    if text not in ("program", "newest"):
        raise typer.BadParameter(
            f"{text!r} is neither program, newest nor a number of programs", param_hint="--freshness"
        )
    return "this program" if text == "program" else text
