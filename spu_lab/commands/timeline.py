"""``tngd timeline``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from spu_lab.commands.command import MessageCommand
from spu_lab.commands.messages import note

app = typer.Typer()


@app.command(
    cls=MessageCommand,
    epilog="""
    [b]Examples[/b]

    tngd timeline results/train                            four typical steps, as results/train/timeline.png

    tngd timeline results/train --steps 40:44 --out t.svg  steps 40 to 43

    tngd timeline results/train --from 1.5 --to 1.8        by time, in seconds since the record began

    tngd timeline results/train --trace trace.json         and all of it for https://ui.perfetto.dev

    [b]How to read it[/b]

    Down: a gradient leaves the host, is an upload on the link, and takes effect on the SPU.

    Along: the SPU evolves under that program, in its colour, until the next one takes effect.

    An emulator computes each reading after its time: yellow bars, which a device would not need.

    Up: a dot is a reading; it goes to the update that it made. Red: what was lost.

    t: how long a program had run when it was read. t_d: the delay from there to the next program.
    """,
)
def timeline(
    run: Annotated[
        Path, typer.Argument(help="Folder that `tngd train --out` left; its events.jsonl is read.", exists=True)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The picture: .png, .svg or .pdf.", dir_okay=False, show_default="RUN/timeline.png"),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Steps A to B − 1, counted from 1; either may be left out.",
            show_default="four typical ones",
        ),
    ] = None,
    began: Annotated[
        float | None,
        typer.Option(
            "--from",
            help="First instant: seconds since the record began; with a stepped clock device time in τ.",
            show_default="as --steps says",
        ),
    ] = None,
    ended: Annotated[
        float | None, typer.Option("--to", help="Last instant, likewise.", show_default="as --steps says")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSON for ui.perfetto.dev or chrome://tracing: the whole run, or what --steps, --from and --to say.",
            dir_okay=False,
            show_default="none",
        ),
    ] = None,
    theme: Annotated[
        Literal["light", "dark"], typer.Option(help="For a page with a light or a dark ground.")
    ] = "light",
) -> None:
    """Show what host, link and device did when: a picture of some steps, and a trace of the run.

    The axis is host time, device times are placed on it by what the clocks agreed on; a stepped clock's is device time.
    """
    if out is not None and out.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{out} must end in .png, .svg or .pdf", param_hint="--out")

    from host_client.record import load

    record = load(run)

    from spu_lab.timeline import (
        choose_window,
        describe_measurements,
        draw,
        headline,
        lay_out,
        parse_steps,
        subtitle,
        write_trace,
    )

    laid_out = lay_out(record)
    asked = parse_steps(steps) if steps is not None else None
    window = choose_window(laid_out, steps=asked, began=began, ended=ended)
    path = out or (run if run.is_dir() else run.parent) / "timeline.png"
    draw(
        laid_out,
        window,
        path,
        title=headline(laid_out, window),
        subtitles=[describe_measurements(laid_out, window), subtitle(record)],
        theme=theme,
    )
    typer.echo(f"{path}: {headline(laid_out, window)}")
    if trace is not None:
        whole = asked is None and began is None and ended is None
        count = write_trace(laid_out, trace, window=None if whole else window, about=record.header)
        typer.echo(f"{trace}: {count} trace events; open it at https://ui.perfetto.dev")
    for text in (*record.notes, *laid_out.notes):
        note(text)
