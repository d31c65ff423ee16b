"""``tngd performance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spu_lab.commands.command import MessageCommand

app = typer.Typer()


@app.command(cls=MessageCommand)
def performance(
    results: Annotated[
        Path, typer.Argument(help="Folder with files of `tngd bench NAME --json FILE`.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The page; plots go to images next to it.")] = Path(
        "docs/performance.md"
    ),
) -> None:
    """Render benchmark results as a page with table and plots."""
    from spu_lab.performance import write_page

    missed = write_page(results, out)
    typer.echo(f"Written to {out}; targets missed: {', '.join(missed) or 'none'}")
