"""Things that are found by name: one module of a package each, with a function ``run``."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import ClassVar


class UnknownName(Exception):
    """No experiment or benchmark has this name."""

    remedy: ClassVar[str] = "use one of the names that the message lists"


def names(package: ModuleType) -> list[str]:
    """Return the names of a package's modules that define ``run``, with hyphens for underscores; none is imported."""
    return sorted(_sources(package))


def summary(package: ModuleType, name: str) -> str:
    """Return the first line of a module's docstring, without importing it."""
    return (ast.get_docstring(_sources(package)[name]) or "").partition("\n")[0]


def find(package: ModuleType, name: str) -> ModuleType:
    """Import the module of that name.

    Raises:
        UnknownName: when there is none; nothing has been imported then.
    """
    check(package, name)
    return importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")


def check(package: ModuleType, name: str) -> None:
    """Refuse a name that no module has.

    Raises:
        UnknownName: listing those there are.
    """
    known = names(package)
    if name not in known:
        raise UnknownName(f"{name!r} is none of {', '.join(known) or 'nothing: there are none yet'}")


@cache
def _sources(package: ModuleType) -> dict[str, ast.Module]:
    """Return the syntax trees of the modules that define ``run``, by name."""
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        tree = ast.parse(Path(package.__path__[0], f"{module.name}.py").read_text(encoding="utf-8"))
        if any(_defines_run(node) for node in tree.body):
            found[module.name.replace("_", "-")] = tree
    return found


def _defines_run(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "run" for target in node.targets)
    return isinstance(node, ast.FunctionDef) and node.name == "run"
