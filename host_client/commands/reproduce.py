"""``tngd reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from host_client.commands.command import Command

app = typer.Typer()


@app.command(cls=Command)
def reproduce(
    name: Annotated[str, typer.Argument(help="Name of the experiment; `list` shows all of them.")],
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the results; it may hold no run.", show_default="results/NAME"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --out holds.")] = False,
    spu: Annotated[
        str | None,
        typer.Option(help="Device: unix:PATH or HOST:PORT of a daemon.", show_default="a daemon of its own"),
    ] = None,
) -> None:
    """Repeat an experiment: seeds, bands and a table, as CSV, JSON, Markdown and a plot."""
    from host_client import experiments, modules
    from host_client.result_folder import check_free, new_results

    if name == "list":
        for known in modules.names(experiments):
            typer.echo(f"{known}: {modules.summary(experiments, known)}")
        return
    modules.check(experiments, name)
    folder = out or Path("results") / name
    check_free(folder, name, overwrite=overwrite)
    module = modules.find(experiments, name)
    with new_results(folder, name):
        module.run(folder, spu, Console())
