"""``tngd train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from spu_lab.commands.command import MessageCommand
from spu_lab.commands.messages import print_interrupted
from spu_lab.result_folder import interrupted_run
from spu_lab.training.settings import Settings
from spu_server.cli_options import explicit, options_of

app = typer.Typer()


@app.command(
    cls=MessageCommand,
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
@options_of(Settings)
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
    train_size: Annotated[int, typer.Option(min=1, max=50_000, help="Training images to use, of 50,000.")] = 10_000,
    test_size: Annotated[int, typer.Option(min=1, max=10_000, help="Test images to use, of 10,000.")] = 10_000,
    *,
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
    **options: Any,
) -> None:
    """Train a network and keep a record of every iteration.

    Ctrl-C ends the run after the iteration that is under way, and a second one at once. With --resume it goes on.
    """
    from spu_lab.result_folder import check_free, checkpoint_in

    given = {name: value for name, value in context.params.items() if name not in ("out", "overwrite", "resume")}
    if resume and overwrite:
        raise typer.BadParameter("it removes what --resume would go on from", param_hint="--overwrite")
    if not resume:
        settings = _settings(given)
        check_free(out, "run", overwrite=overwrite)
        _train(given, settings, out, None)
        return

    checkpoint_in(out)

    from spu_lab.training import checkpoint

    saved = checkpoint.load(out)
    chosen = explicit(context) & given.keys()
    checkpoint.check_options(saved["options"], {name: given[name] for name in chosen - {"spu"}})
    given = {**saved["options"], **({"spu": spu} if "spu" in chosen else {})}
    _train(given, _settings(given), out, saved)


def _settings(given: dict[str, Any]) -> Settings:
    return Settings(**{name: given[name] for name in Settings.model_fields if given.get(name) is not None})


def _train(given: dict[str, Any], settings: Settings, out: Path, saved: dict[str, Any] | None) -> None:
    """Train with these options, from a checkpoint on if there is one."""
    from contextlib import ExitStack

    from host_client.blocking import connect
    from spu_lab.tasks.mnist import mnist
    from spu_lab.training.report import run_table
    from spu_lab.training.runner import run_in
    from spu_lab.training.stopping import Stop

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
        print_interrupted(stop.number, f"after step {len(result.steps)} of {total}; {interrupted_run(out)}; {then}")
        raise typer.Exit(128 + stop.number)
    sizes = f"{given['train_size']:,} training and {given['test_size']:,} test images, N = {result.parameters:,}"
    console.print(run_table(name, result, f"{given['task']}: {sizes}"))
    console.print(f"Every iteration, settings and plot: {out}", highlight=False, soft_wrap=True)
    if stop.number is not None:
        print_interrupted(stop.number, f"when the run had finished; {out} holds all of it")
        raise typer.Exit(128 + stop.number)
