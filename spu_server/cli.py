"""The command ``spu-server``."""

from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from spu_server.cli_options import CommandGroup, checked, explicit, options_of
    from spu_server.daemon_settings import BadSettings, ServeSettings
except ModuleNotFoundError as missing:
    if missing.name not in ("typer", "rich", "pydantic_settings"):
        raise
    sys.exit(f"error: {missing.name} is not installed, which spu-server needs; pip install 'tngd-spu[server]'")

from spu_link.tuning import tune_process
from spu_server.device_settings import named

app = typer.Typer(
    name="spu-server",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Daemon of a stochastic processing unit: an Ornstein–Uhlenbeck device in real time, served over gRPC.",
)
errors = Console(stderr=True)


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
@options_of(ServeSettings, "listen", "driver")
def serve(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with the same settings; options go before it.",
            exists=True,
            dir_okay=False,
            show_default="none",
        ),
    ] = None,
    **options: Any,
) -> None:
    """Run the device and serve it until SIGTERM or Ctrl-C.

    Prints one line `ready ADDRESS…` on standard output when it serves. SIGTERM ends it within 5 s, with exit code 0.
    """
    tune_process()
    from spu_server import log

    try:
        settings = ServeSettings.load(config, **{name: options[name] for name in explicit(context) & options.keys()})
    except BadSettings as error:
        for where, words in error.problems:
            print_error(where, words)
        raise typer.Exit(2) from None
    _check_driver(settings.driver)
    log.configure(settings.log_level)
    from spu_link.errors import LogUnusable, SpuError
    from spu_server.socket_files import AddressError
    from spu_server.start import start

    try:
        asyncio.run(start(settings))
    except (AddressError, LogUnusable, SpuError) as error:
        print_error("not started", f": {error}")
        raise typer.Exit(1) from None


def print_error(title: str, message: str) -> None:
    """Print to standard error, the first words in red, without line breaks of our own."""
    errors.print(f"[red]{escape(title)}[/red]{escape(message)}", highlight=False, soft_wrap=True)


def _check_driver(name: str) -> None:
    """Exit when no driver has this name."""
    from spu_server.drivers.registry import DriverUnusable, find_driver

    try:
        find_driver(name)
    except (LookupError, DriverUnusable) as error:
        print_error("driver", f": {error}")
        raise typer.Exit(1) from None


@app.command()
def conformance(
    name: Annotated[str, typer.Argument(help="Driver under test, by its entry point.")],
    driver_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, one of the driver's own options; repeatable.", callback=checked(named)),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest error that counts as right, as a fraction of the largest value in play.")
    ] = 1e-3,
) -> None:
    """Run every rule for drivers on a driver, on the real thing. Exit code 1 if it breaks one."""
    tune_process()
    _check_driver(name)
    from spu_link.errors import SpuError
    from spu_server.drivers.base import DriverOptions
    from spu_server.testing.bench import Bench
    from spu_server.testing.runner import run_all

    console = Console()

    async def run() -> int:
        bench = Bench(name, DriverOptions(settings=named(driver_option or [])), tolerance=tolerance)
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
        print_error("not opened", f": {error}")
        raise typer.Exit(1) from None
    console.print(f"{name}: {broken or 'no'} rules broken")
    raise typer.Exit(1 if broken else 0)


@app.command()
def drivers() -> None:
    """List the installed drivers: their names, where they come from, and why one cannot be loaded."""
    from spu_server.drivers.registry import distribution_of, installed_drivers, problems

    entries = installed_drivers()
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
        devices = load_driver(name).discover()
    except DriverUnusable as error:
        print_error("not asked", f": {error}")
        raise typer.Exit(1) from None
    for settings in devices:
        options = [f"--driver-option {shlex.quote(f'{key}={value}')}" for key, value in settings.items()]
        typer.echo(" ".join(["spu-server serve --driver", name, *options]))
    if not devices:
        typer.echo(f"{name}: finds no device")


if __name__ == "__main__":
    app()
