"""Commands that write in the terminal's characters, and whose errors are messages."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from host_client.commands.messages import one_clear_message


class Command(TyperCommand):
    """A command whose errors are messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        names = {one.name: one.opts[0] for one in self.params if one.name is not None and one.opts[0].startswith("-")}
        with one_clear_message(names, ctx.params.get("out")):
            return super().invoke(ctx)
