"""The rules as the documents show them."""

from __future__ import annotations

from spu_server.testing.checks import CHECKS
from spu_server.testing.runner import rule_of


def check_table() -> str:
    """The rules as Markdown, one row a check."""
    rows = "".join(f"| {check.__name__.replace('_', ' ')} | {rule_of(check)} |\n" for check in CHECKS)
    return f"| a driver … | |\n|---|---|\n{rows}"
