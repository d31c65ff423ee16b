"""Benchmarks by name: the modules of the package `benchmarks`, each with ``run() -> dict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import benchmarks
from host_client import modules
from host_client.provenance import provenance
from host_client.results import write_json


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
    with console.status(f"Running benchmark {name}"):
        results: dict[str, Any] = module.run()
    ratios = results.get("ratios", {})
    table = Table(
        "ratio", "value", title=name, title_justify="left", title_style="bold", box=SIMPLE_HEAD, collapse_padding=True
    )
    for ratio, value in ratios.items():
        table.add_row(ratio, f"{value:.4g}")
    console.print(table)
    others = {key: value for key, value in results.items() if key != "ratios"}
    content = {"name": name, "ratios": ratios, "results": others, **provenance()}
    if json is not None:
        write_json(json, content)
        console.print(f"Written to {json}", highlight=False)
    return content
