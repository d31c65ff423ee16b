"""``tngd reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from spu_lab.commands.command import MessageCommand
from spu_lab.commands.messages import explain, note, print_error

app = typer.Typer()

PACKAGE: Final = "spu_lab.experiments"
"""Its modules are the experiments."""

ALL: Final = "all"
"""The argument that runs every experiment."""


def _default_folder(context: typer.Context, out: Path | None) -> Path:
    """Return the folder for the results, so that a message about an interrupted run knows it too."""
    name = context.params.get("name", ALL)  # parsed before an option that is not given
    return out or (Path("results") if name == ALL else Path("results", name))


@app.command(cls=MessageCommand)
def reproduce(
    name: Annotated[
        str, typer.Argument(help="Name of the experiment; `list` shows all of them, `all` runs one after another.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            callback=_default_folder,
            help="Folder for the results; it may hold no run. `all` makes one in it for each experiment.",
            show_default="results/NAME",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --out holds.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that --out holds; what is done is not done again.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Data of question-answering: a JSON file in the layout of SQuAD."
        ),
    ] = None,
    spu: Annotated[
        str | None,
        typer.Option(help="Device: unix:PATH or HOST:PORT of a daemon, or inproc:.", show_default="daemons of its own"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run a miniature, of a minute on two cores.")] = False,
) -> None:
    """Repeat an experiment: seeds, bands, a table and verdicts, as CSV, JSON, Markdown and a plot."""
    from spu_lab import catalogue

    assert out is not None  # by _default_folder
    if overwrite and resume:
        raise typer.BadParameter("--overwrite removes what --resume goes on with; give one of the two")
    if name == "list":
        for known in catalogue.names(PACKAGE):
            typer.echo(f"{known}: {catalogue.summary(PACKAGE, known)}")
        return
    options: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "data": data, "spu": spu, "quick": quick}
    if name == ALL:
        _reproduce_all(out, **options)
    else:
        catalogue.check(PACKAGE, name)
        _reproduce(name, out, **options)


def _reproduce(
    name: str, folder: Path, *, overwrite: bool, resume: bool, data: Path | None, spu: str | None, quick: bool
) -> None:
    """Run one experiment."""
    from spu_lab import catalogue
    from spu_lab.result_folder import check_free, check_resumable, new_results

    given = {"spu": spu, "quick": quick, "data": str(data.resolve()) if data is not None else None}
    if resume:
        check_resumable(folder, name, given)
    else:
        check_free(folder, name, overwrite=overwrite)
    module = catalogue.find(PACKAGE, name)
    options = catalogue.data_of(module, name, data)
    with new_results(folder, name, resume=resume, options=given):
        module.run(folder, spu, Console(), quick=quick, **options)


def _reproduce_all(folder: Path, *, resume: bool, data: Path | None, **options: Any) -> None:
    """Run every experiment in a folder of its own; those that fail do not keep the others from running.

    With `resume` those that have finished are left as they are, and those that have not begun begin.
    """
    from spu_lab import catalogue
    from spu_lab.result_folder import interrupted_run, read_json

    failed = []
    names = catalogue.names(PACKAGE)
    for number, name in enumerate(names, 1):
        place = folder / name
        status = read_json(place / f"{name}.json").get("status")
        needs_data = catalogue.reads_data(PACKAGE, name)
        if needs_data and data is None:
            note(f"{name} is left out: it reads data of yours; name the file with --data")
        elif resume and status == "finished":
            note(f"{name} has finished, see {place}")
        else:
            typer.echo(f"{number} of {len(names)}: {name}, {catalogue.summary(PACKAGE, name)}")
            given = data if needs_data else None
            try:
                _reproduce(name, place, resume=resume and status is not None, data=given, **options)
            except catalogue.SoftwareMissing as error:
                note(f"{name} is left out: {error}")
            except Exception as error:  # noqa: BLE001 - each becomes a message
                print_error(*explain(error, {}, place))
                failed.append(name)
            except KeyboardInterrupt:
                note(interrupted_run(place))
                raise
    if failed:
        print_error("error", f"failed: {', '.join(failed)}; the messages are above")
        raise typer.Exit(1)
