"""The command ``spu-board-simulator``."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Annotated

import typer

from spu_server.board.simulator.cells import BoardOptions, SimulatedBoard
from spu_server.board.simulator.faults import LineFaults
from spu_server.board.simulator.serve import serve_pty, serve_tcp

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    listen: Annotated[
        str, typer.Option(help="tcp:HOST:PORT (port 0: any free one), or pty for a pseudo-terminal.")
    ] = "tcp:127.0.0.1:0",
    cells: Annotated[int, typer.Option(help="Number of cells.", min=1, max=64)] = BoardOptions.cells,
    tick_rate: Annotated[float, typer.Option(help="Nominal rate of the counter, ticks per second.")] = (
        BoardOptions.tick_rate
    ),
    tau: Annotated[float, typer.Option(help="Time constant of the cells, seconds.")] = BoardOptions.tau,
    ppm: Annotated[float, typer.Option(help="How much faster than nominal its clock runs, in millionths.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the cells' noise.")] = 0,
    adc_noise: Annotated[float, typer.Option(help="Standard deviation of each conversion, in codes.")] = 0.0,
    bit_errors: Annotated[float, typer.Option(help="Chance that a bit of the line is turned over.")] = 0.0,
    lost: Annotated[float, typer.Option(help="Chance that a frame is lost.")] = 0.0,
    doubled: Annotated[float, typer.Option(help="Chance that a frame arrives twice.")] = 0.0,
    latency: Annotated[float, typer.Option(help="Seconds from request to answer.")] = 0.0,
) -> None:
    """Run a simulated board until SIGTERM or Ctrl-C. Prints one line `ready ADDRESS` when it can be spoken to."""
    board = SimulatedBoard(BoardOptions(cells, tick_rate, tau, ppm, seed, adc_noise))
    faults = LineFaults(bit_errors, lost, doubled, latency)
    host, _, port = listen.removeprefix("tcp:").rpartition(":")
    if listen != "pty" and not (listen.startswith("tcp:") and host and port.isdecimal()):
        raise typer.BadParameter(f"{listen!r} is neither tcp:HOST:PORT nor pty", param_hint="--listen")

    def ready(address: str) -> None:
        print("ready", address, flush=True)

    async def serve() -> None:
        running = asyncio.current_task()
        assert running is not None
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, running.cancel)
        if listen == "pty":
            await serve_pty(board, faults, ready)
        else:
            await serve_tcp(board, faults, host, int(port), ready)

    with suppress(asyncio.CancelledError):  # by a signal
        asyncio.run(serve())
