"""``tngd reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from spu_lab.commands.command import MessageCommand

app = typer.Typer()

PACKAGE: Final = "spu_lab.experiments"
"""Its modules are the experiments."""


@app.command(cls=MessageCommand)
def reproduce(
    name: Annotated[str, typer.Argument(help="Name of the experiment; `list` shows all of them.")],
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the results; it may hold no run.", show_default="results/NAME"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --out holds.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Data of question-answering: a JSON file in the layout of SQuAD."
        ),
    ] = None,
    spu: Annotated[
        str | None,
        typer.Option(help="Device: unix:PATH or HOST:PORT of a daemon.", show_default="a daemon of its own"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run a miniature of at most a minute, of an experiment that has one.")
    ] = False,
) -> None:
    """Repeat an experiment: seeds, bands and a table, as CSV, JSON, Markdown and a plot."""
    from spu_lab import catalogue
    from spu_lab.result_folder import check_free, new_results

    if name == "list":
        for known in catalogue.names(PACKAGE):
            typer.echo(f"{known}: {catalogue.summary(PACKAGE, known)}")
        return
    catalogue.check(PACKAGE, name)
    folder = out or Path("results") / name
    check_free(folder, name, overwrite=overwrite)
    module = catalogue.find(PACKAGE, name)
    options = catalogue.data_of(module, name, data)
    if quick:
        options |= catalogue.miniature_of(module, name)
    with new_results(folder, name):
        module.run(folder, spu, Console(), **options)
