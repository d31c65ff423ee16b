"""A device's run made again in this process, and what came of it, shown."""

from __future__ import annotations

import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path

from rich.console import Console

from host_client.follow import progress
from spu_server.event_log import Log
from spu_server.replay import Outcome
from spu_server.replay import replay as make_again


def replay(path: Path, console: Console, *, json: bool) -> bool:
    """Replay a log, with a progress bar, and tell the outcome; whether every reading is the same, bit for bit.

    Args:
        path: the log's folder, or one that holds it alone.
        console: where bar and outcome go.
        json: whether to print the outcome on standard output, as JSON.

    Raises:
        LogUnusable: when the log cannot be read.
    """
    log = Log.load(path)
    with progress(console) as bar:
        task = bar.add_task("calls", total=len(log.events), status="")
        outcome = make_again(log, lambda done: bar.update(task, completed=done))
    if json:
        sys.stdout.write(dumps({"log": str(log.folder), "identical": outcome.identical, **asdict(outcome)}) + "\n")
    else:
        console.print(describe(outcome), highlight=False, soft_wrap=True)
    return outcome.identical


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
