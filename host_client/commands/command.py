"""Commands that write in the terminal's characters, and whose errors are messages."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from host_client.commands.messages import one_clear_message
from spu_link.plain import write_plainly


class Program(TyperGroup):
    """A program of several commands, for any terminal."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command that the arguments name."""
        write_plainly()
        return super().main(*arguments, **options)


class Command(TyperCommand):
    """A command whose errors are messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        names = {one.name: one.opts[0] for one in self.params if one.name is not None and one.opts[0].startswith("-")}
        with one_clear_message(names, ctx.params.get("out")):
            return super().invoke(ctx)
