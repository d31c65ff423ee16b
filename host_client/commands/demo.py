"""``tngd demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from host_client.commands.command import Command

app = typer.Typer()


@app.command(cls=Command)
def demo(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for plot, JSON and CSV; made if need be. It may hold no run.")
    ] = Path("results/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --out holds.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over 10,000 training images, for each optimizer.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of network, batches and the device's noise.")] = 0,
) -> None:
    """Train a CNN on MNIST with TNGD through a daemon of its own, and compare it with Adam.

    Starts `spu-server serve` with a free-running emulator as a separate process, and ends it afterwards.
    """
    from host_client.result_folder import check_free, new_results

    check_free(out, "demo", overwrite=overwrite)

    from host_client.demo import demo as show

    with new_results(out, "demo"):
        show(out, epochs=epochs, seed=seed)
