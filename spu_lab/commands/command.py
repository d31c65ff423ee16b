"""Commands that write in the terminal's characters, and whose errors are messages."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from spu_lab.commands.messages import one_clear_message


class MessageCommand(TyperCommand):
    """A command whose errors are messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        names = {
            parameter.name: parameter.opts[0]
            for parameter in self.params
            if parameter.name is not None and parameter.opts[0].startswith("-")
        }
        with one_clear_message(names, ctx.params.get("out")):
            return super().invoke(ctx)
