"""`tngd` as a program, with images that are there at once in place of MNIST: python program.py ARGUMENTS."""

from __future__ import annotations

from spu_lab import cli
from spu_lab.tasks import mnist as mnist_task
from tests.command_line import digits

if __name__ == "__main__":
    mnist_task.digits = digits
    cli.app()
