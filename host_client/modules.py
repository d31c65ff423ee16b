"""Things that are found by name: one module of a package each, with a function ``run``."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


class UnknownName(Exception):
    """No module of that name; the message lists those there are."""


def names(package: ModuleType) -> list[str]:
    """Names of a package's modules that have a function ``run``, with hyphens for underscores. Imports them all."""
    return sorted(_modules(package))


def find(package: ModuleType, name: str) -> ModuleType:
    """The module of that name.

    Raises:
        UnknownName: when there is none.
    """
    known = _modules(package)
    if name not in known:
        raise UnknownName(f"{name!r} is none of {', '.join(sorted(known)) or 'nothing: there are none yet'}")
    return known[name]


def _modules(package: ModuleType) -> dict[str, ModuleType]:
    found = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return {m.__name__.rpartition(".")[2].replace("_", "-"): m for m in found if callable(getattr(m, "run", None))}
