"""``tngd replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from host_client.commands.command import Command

app = typer.Typer()


@app.command(
    cls=Command,
    epilog="""
    [b]Examples[/b]

    spu-server serve --record logs           a daemon that keeps a log

    tngd replay logs                         the same run again, on the same driver, in this process
    """,
)
def replay(
    log: Annotated[Path, typer.Argument(help="Folder of the log, or one that holds this log alone.", exists=True)],
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Make the run of a device's event log again, and say whether its readings are the same, bit for bit.

    Exit code 0 if everything came out as in the log, else 1.
    """
    from spu_server.log_folder import only_log

    only_log(log)

    from host_client.replay import replay as run_again

    if not run_again(log, Console(stderr=json), json=json):
        raise typer.Exit(1)
