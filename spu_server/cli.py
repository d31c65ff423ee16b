"""The command ``spu-server``."""

from __future__ import annotations

import asyncio
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spu_link.command_group import CommandGroup
from spu_link.tuning import tune_process

app = typer.Typer(
    name="spu-server",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Daemon of a stochastic processing unit: an Ornstein–Uhlenbeck device in real time, served over gRPC.",
)
errors = Console(stderr=True)


class ClockName(StrEnum):
    """Values of --clock."""

    FREE = "free"
    STEPPED = "stepped"


class LogLevel(StrEnum):
    """Values of --log-level."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@app.command(
    epilog="""
    [b]Examples[/b]

    spu-server serve                                         an emulator on unix:/tmp/spu.sock, in real time

    spu-server serve --listen 127.0.0.1:50051 --rate 1000    the same on TCP, slowed down to 1000 τ a second

    spu-server serve --clock stepped --seed 7                time moves only by advance: experiments to the bit

    Options may also be set in the environment (SPU_RATE=1000; several addresses
    in SPU_LISTEN with commas) or in the TOML file given with --config (rate = 1000).
    Options go before the environment, and that before the file.

    A Unix socket PATH comes with PATH.lock, which keeps it for this daemon, and
    PATH.memory, through which clients share memory; all are removed at the end.
    """
)
def serve(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            help="Address to listen on, unix:PATH (mode 0600) or HOST:PORT (port 0: any free one); repeatable.",
            show_default="unix:/tmp/spu.sock",
        ),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(help="Driver of the device; `spu-server drivers` lists them.", show_default="emulator"),
    ] = None,
    clock: Annotated[
        ClockName | None,
        typer.Option(
            help="free: device time runs with this machine's clock. stepped: it moves only by the client's advance.",
            show_default="free",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Speed of a free clock, in τ per second of wall time.",
            show_default="real time, 1 / tau",
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(help="Time constant τ of the device, in seconds.", show_default="1e-6"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the device's noise, 0 to 2^63 − 1.", show_default="0"),
    ] = None,
    cells: Annotated[
        int | None,
        typer.Option(help="Max number of cells (parameters) of a program.", show_default="200000000"),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(help="Max number of bytes of tensors in one program.", show_default="8 GiB"),
    ] = None,
    compute: Annotated[
        str | None,
        typer.Option(help="Where the emulator computes: cpu, cuda, or cuda:INDEX.", show_default="cpu"),
    ] = None,
    driver_deadline: Annotated[
        float | None,
        typer.Option(
            help="Longest that a driver may take to answer, beyond what it announces, before it counts as hung, s.",
            show_default="1.5",
        ),
    ] = None,
    driver_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, one of the driver's own options; repeatable.", show_default="none"),
    ] = None,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate",
            help="Let the device calibrate itself whenever its driver is opened: now, and after each restart.",
            show_default="no",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a log of every driver call, uploads and readings included, for `tngd replay`.",
            file_okay=False,
            show_default="no log",
        ),
    ] = None,
    insecure_remote: Annotated[
        bool | None,
        typer.Option(
            "--insecure-remote",
            help="Allow addresses that other machines can reach, without authentication or encryption.",
            show_default="no",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help="Min severity of what is logged to standard error.", show_default="info"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with the same settings; options go before it.",
            exists=True,
            dir_okay=False,
            show_default="none",
        ),
    ] = None,
) -> None:
    """Run the device and serve it until SIGTERM or Ctrl-C.

    Prints one line `ready ADDRESS…` on standard output when it serves. SIGTERM ends it within 5 s, with exit code 0.
    """
    tune_process()
    from spu_server import log
    from spu_server.config import BadSettings, ServeSettings

    try:
        settings = ServeSettings.load(
            config,
            listen=listen or None,
            driver=driver,
            clock=clock,
            rate=rate,
            tau=tau,
            seed=seed,
            cells=cells,
            max_bytes=max_bytes,
            compute=compute,
            driver_deadline=driver_deadline,
            driver_option=_named(driver_option) or None,
            calibrate=calibrate,
            record=record,
            insecure_remote=insecure_remote,
            log_level=log_level,
        )
    except BadSettings as error:
        for where, words in error.problems:
            tell(where, words)
        raise typer.Exit(2) from None
    _check_driver(settings.driver)
    log.configure(settings.log_level)
    from spu_link.errors import LogUnusable, SpuError
    from spu_server.socket_files import AddressError
    from spu_server.start import start

    try:
        asyncio.run(start(settings))
    except (AddressError, LogUnusable, SpuError) as error:
        tell("not started", f": {error}")
        raise typer.Exit(1) from None


def tell(what: str, message: str) -> None:
    """Print to standard error, the first words in red, without line breaks of our own."""
    errors.print(f"[red]{escape(what)}[/red]{escape(message)}", highlight=False, soft_wrap=True)


def _named(options: list[str] | None) -> dict[str, str]:
    """Options NAME=VALUE by name."""
    from spu_server.config import named

    try:
        return named(options or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--driver-option") from None


def _check_driver(name: str) -> None:
    """Exit when no driver has this name."""
    from spu_server.drivers.registry import DriverUnusable, find_driver

    try:
        find_driver(name)
    except (LookupError, DriverUnusable) as error:
        tell("driver", f": {error}")
        raise typer.Exit(1) from None


@app.command()
def conformance(
    name: Annotated[str, typer.Argument(help="Driver under test, by its entry point.")],
    driver_option: Annotated[
        list[str] | None,
        typer.Option("--driver-option", "--option", help="NAME=VALUE, one of the driver's own options; repeatable."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest error that counts as right, as a fraction of the largest value in play.")
    ] = 1e-3,
) -> None:
    """Run every rule for drivers on a driver, on the real thing. Exit code 1 if it breaks one."""
    tune_process()
    settings = _named(driver_option)
    _check_driver(name)
    from spu_link.errors import SpuError
    from spu_server.drivers.base import DriverOptions
    from spu_server.testing.bench import Bench
    from spu_server.testing.runner import run_all

    console = Console()

    async def run() -> int:
        bench = Bench(name, DriverOptions(settings=settings), tolerance=tolerance)
        broken = 0
        try:
            await bench.open()
            async for result in run_all(bench):
                broken += bool(result.problem)
                verdict = "[red]broken[/red]" if result.problem else "[dim]n/a[/dim]" if result.skipped else "ok"
                rule = result.name.replace("_", " ")
                console.print(f"{verdict:>6} {rule} [dim]({result.seconds:.1f} s)[/dim]", highlight=False)
                if result.problem or result.skipped:
                    console.print(f"       {escape(result.problem or result.skipped)}", highlight=False)
        finally:
            await bench.close()
        return broken

    try:
        broken = asyncio.run(run())
    except SpuError as error:
        tell("not opened", f": {error}")
        raise typer.Exit(1) from None
    console.print(f"{name}: {broken or 'no'} rules broken")
    raise typer.Exit(1 if broken else 0)


@app.command()
def drivers() -> None:
    """List the installed drivers: their names, where they come from, and why one cannot be loaded."""
    from spu_server.drivers.registry import distribution_of, installed, problems

    entries = installed()
    table = Table("driver", "distribution", "class", "state")
    for entry, problem in zip(entries, problems([entry.name for entry in entries]), strict=True):
        state = f"[red]{escape(problem)}[/red]" if problem else "ok"
        table.add_row(entry.name, distribution_of(entry), entry.value, state)
    Console().print(table)


@app.command()
def discover(name: Annotated[str, typer.Argument(help="Driver to ask, by its entry point.")]) -> None:
    """List the devices that a driver finds: for each, the command that serves it.

    The driver `board` asks every serial line of this machine that nobody holds.
    """
    from spu_server.drivers.registry import DriverUnusable, load_driver

    _check_driver(name)
    try:
        found = load_driver(name).discover()
    except DriverUnusable as error:
        tell("not asked", f": {error}")
        raise typer.Exit(1) from None
    for settings in found:
        options = [f"--driver-option {shlex.quote(f'{key}={value}')}" for key, value in settings.items()]
        typer.echo(" ".join(["spu-server serve --driver", name, *options]))
    if not found:
        typer.echo(f"{name}: finds no device")


if __name__ == "__main__":
    app()
