"""The class of the programs `tngd` and `spu-server`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from spu_link.plain import write_plainly


class CommandGroup(TyperGroup):
    """A program of several commands that writes in the terminal's characters."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command that the arguments name."""
        write_plainly()
        return super().main(*arguments, **options)
