"""``tngd bench``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spu_lab import catalogue
from spu_lab.commands.command import MessageCommand
from spu_lab.result_folder import write_json

app = typer.Typer()

PACKAGE: Final = "spu_lab.benchmarks"
"""Its modules are the benchmarks, each with ``run() -> dict``.

Next to it are ``RATIOS``, the meaning of each ratio, and ``TARGETS``, the bounds that some must keep.
"""


@app.command(cls=MessageCommand)
def bench(
    name: Annotated[str, typer.Argument(help="Name of the benchmark; `list` shows all of them.")],
    json: Annotated[
        Path | None,
        typer.Option(help="File for ratios, results, versions and machine.", dir_okay=False, show_default="none"),
    ] = None,
) -> None:
    """Run a benchmark; its results are ratios of things timed in the same run."""
    if name == "list":
        for known in catalogue.names(PACKAGE):
            typer.echo(known)
        return
    run_benchmark(name, json)


def run_benchmark(name: str, json: Path | None, console: Console | None = None) -> dict[str, Any]:
    """Run a benchmark, show its ratios, and write them with all that is needed to judge them.

    Args:
        name: of the benchmark.
        json: file for name, ratios, other results, versions and machine.
        console: where to show it; standard output by default.

    Raises:
        UnknownName: when there is no such benchmark.
    """
    console = console or Console()
    module = catalogue.find(PACKAGE, name)

    from spu_lab.provenance import provenance

    begin = time.monotonic()
    with console.status(f"{name} …") as status, progress(lambda text: status.update(f"{name}: {escape(text)}")):
        results: dict[str, Any] = module.run()
    ratios = results.get("ratios", {})
    table = Table(
        "ratio", "value", title=name, title_justify="left", title_style="bold", box=SIMPLE_HEAD, collapse_padding=True
    )
    for ratio, value in ratios.items():
        table.add_row(ratio, f"{value:.4g}")
    console.print(table)
    others = {key: value for key, value in results.items() if key != "ratios"}
    content = {"name": name, "ratios": ratios, "seconds": time.monotonic() - begin, "results": others, **provenance()}
    if json is not None:
        write_json(json, content)
        console.print(f"Written to {json}", highlight=False)
    return content


@contextmanager
def progress(show: Callable[[str], object]) -> Iterator[None]:
    """Hand on what the benchmarks log about their progress, for the length of a ``with`` block."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    logger, handler = logging.getLogger(PACKAGE), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
