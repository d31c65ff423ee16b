"""A table on the console and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def show_and_write(
    path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console, *, title: str
) -> None:
    """Print a table and write it to a Markdown file; the first column is left-aligned and wraps, the others right.

    Raises:
        OSError: when the file cannot be made.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    rule = [":--", *["--:"] * (len(columns) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{title}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
