"""Things that are found by name: one module of a package each."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


class UnknownName(Exception):
    """No module of that name; the message lists those there are."""


def names(package: ModuleType) -> list[str]:
    """Public modules of a package, with hyphens for underscores."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def find(package: ModuleType, name: str) -> ModuleType:
    """The module of that name, imported.

    Raises:
        UnknownName: when there is none.
    """
    if name not in names(package):
        raise UnknownName(f"{name!r} is none of {', '.join(names(package)) or 'nothing: there are none yet'}")
    return importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
