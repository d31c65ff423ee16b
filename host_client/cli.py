"""The command ``tngd``."""

from __future__ import annotations

import sys

try:
    import typer

    from host_client.commands import bench, demo, performance, replay, reproduce, timeline, train
    from spu_link.command_group import CommandGroup
    from spu_link.tuning import tune_process
except KeyboardInterrupt:  # nothing has begun
    sys.exit(130)

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
