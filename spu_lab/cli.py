"""The command ``tngd``."""

from __future__ import annotations

import sys

try:
    import typer

    from spu_lab.commands import bench, demo, performance, replay, reproduce, timeline, train
    from spu_link.tuning import tune_process
    from spu_server.cli_options import CommandGroup
except KeyboardInterrupt:  # nothing has begun
    sys.exit(130)
except ModuleNotFoundError as missing:
    if missing.name not in ("typer", "rich"):
        raise
    sys.exit(f"error: {missing.name} is not installed, which tngd needs; pip install 'tngd-spu[lab]'")

app = typer.Typer(
    name="tngd",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train neural networks by natural gradient through a stochastic processing unit (SPU).",
)


@app.callback()
def before_every_command() -> None:
    """Train neural networks by natural gradient through a stochastic processing unit (SPU)."""
    tune_process()


for command in (train, demo, reproduce, timeline, bench, replay, performance):
    app.add_typer(command.app)


if __name__ == "__main__":
    app()
