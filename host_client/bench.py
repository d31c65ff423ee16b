"""Benchmarks by name: the modules of the package `benchmarks`, each with ``run() -> dict``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import benchmarks
from host_client import modules
from host_client.provenance import provenance
from host_client.result_folder import write_json


def bench(name: str, json: Path | None, console: Console | None = None) -> dict[str, Any]:
    """Run a benchmark, show its ratios, and write them with all that is needed to judge them.

    Args:
        name: of the benchmark.
        json: file for name, ratios, other results, versions and machine.
        console: where to show it; standard output by default.

    Raises:
        UnknownName: when there is no such benchmark.
    """
    console = console or Console()
    module = modules.find(benchmarks, name)
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

    logger, handler = logging.getLogger(benchmarks.__name__), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
