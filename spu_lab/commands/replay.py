"""``tngd replay``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from spu_lab.commands.command import MessageCommand

if TYPE_CHECKING:
    from spu_server.replay import Outcome

app = typer.Typer()


@app.command(
    cls=MessageCommand,
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
    from spu_server.drivers.log_folder import only_log

    only_log(log)

    from spu_lab.training.follow import progress
    from spu_server import replay
    from spu_server.drivers.event_log import Log

    events, console = Log.load(log), Console(stderr=json)
    with progress(console) as bar:
        task = bar.add_task("calls", total=len(events.events), status="")
        outcome = replay.replay(events, lambda done: bar.update(task, completed=done))
    if json:
        sys.stdout.write(dumps({"log": str(events.folder), "identical": outcome.identical, **asdict(outcome)}) + "\n")
    else:
        console.print(describe(outcome), highlight=False, soft_wrap=True)
    if not outcome.identical:
        raise typer.Exit(1)


def describe(outcome: Outcome) -> str:
    """The outcome in words, a line for each thing to say."""
    alike = "the same, bit for bit"
    if outcome.same == outcome.readings:
        lines = [f"All {outcome.readings:,} readings are {alike} ({outcome.calls:,} calls)."]
    else:
        lines = [f"{outcome.same:,} of {outcome.readings:,} readings are {alike} ({outcome.calls:,} calls)."]
    if first := outcome.first:
        where = f"reading {first.reading:,}" if first.reading else f"call {first.event:,}"
        size = ""
        if first.size is not None:
            size = f", by up to {first.size:.3g} ({first.relative:.1g} of the largest value)"
        lines.append(f"The first that differs is {where}, at {first.time!r} τ: {first.what}{size}.")
    return "\n".join([*lines, *(f"Note: {remark}." for remark in outcome.remarks)])
