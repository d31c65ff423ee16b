"""``tngd reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from host_client.commands.messages import one_clear_message

app = typer.Typer()


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
