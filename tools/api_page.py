"""The generated parts of docs/api.md: a directive for every name of `host_client`, in the groups of its modules."""

from __future__ import annotations

from functools import partial

import host_client

PAGE = "api.md"

GROUPS = {
    "connection": ("host_client.blocking",),
    "optimizers": ("host_client.optimizers", "host_client.solvers", "host_client.loop"),
    "operators": ("spu_link.operators",),
    "curvature": ("host_client.curvature",),
    "records": ("host_client.record",),
    "errors": ("spu_link.errors",),
}
"""Modules whose names each group has. An error or a warning of any module is in the last one."""


def directives(group: str) -> str:
    """Return a directive of mkdocstrings for each name of a group."""
    names = [name for name in sorted(host_client.__all__, key=str.lower) if group_of(name) == group]
    return "".join(f"\n::: host_client.{name}\n" for name in names) + "\n"


def group_of(name: str) -> str:
    """Return the group of a name.

    Raises:
        LookupError: for a name of a module that no group has.
    """
    value = getattr(host_client, name)
    if isinstance(value, type) and issubclass(value, Exception):
        return "errors"
    for group, modules in GROUPS.items():
        if any(f"{value.__module__}.".startswith(f"{module}.") for module in modules):
            return group
    raise LookupError(f"{name} is of {value.__module__}, which no group of tools/api_page.py has: add it to one")


TABLES = {group: partial(directives, group) for group in GROUPS}
