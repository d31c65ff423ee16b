"""``tngd bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from host_client.commands.command import Command

app = typer.Typer()


@app.command(cls=Command)
def bench(
    name: Annotated[str, typer.Argument(help="Name of the benchmark; `list` shows all of them.")],
    json: Annotated[
        Path | None,
        typer.Option(help="File for ratios, results, versions and machine.", dir_okay=False, show_default="none"),
    ] = None,
) -> None:
    """Run a benchmark; its results are ratios of things timed in the same run."""
    import benchmarks
    from host_client import modules

    if name == "list":
        for known in modules.names(benchmarks):
            typer.echo(known)
        return
    modules.check(benchmarks, name)

    from host_client.bench import bench as run_benchmark

    run_benchmark(name, json)
