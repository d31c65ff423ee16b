"""The command ``tngd``."""

from __future__ import annotations

import os
import sys

try:
    import typer

    from host_client.commands import bench, demo, performance, replay, reproduce, timeline, train
    from host_client.commands.command import Program
    from spu_link.tuning import tune_process
except KeyboardInterrupt:  # nothing has begun
    sys.exit(130)

app = typer.Typer(
    name="tngd",
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train neural networks by natural gradient through a stochastic processing unit (SPU).",
)


@app.callback()
def before_every_command() -> None:
    """Train neural networks by natural gradient through a stochastic processing unit (SPU)."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is told by a message of ours
    tune_process()


for command in (train, demo, reproduce, timeline, bench, replay, performance):
    app.add_typer(command.app)


if __name__ == "__main__":
    app()
