"""Experiments and benchmarks by name: the modules of a package that define ``run``."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar


class UnknownName(Exception):
    """No experiment or benchmark has this name."""

    remedy: ClassVar[str] = "use one of the names that the message lists"


class SoftwareMissing(Exception):
    """Software that one experiment alone is about is not installed."""

    remedy: ClassVar[str] = "install it as the message says; no other experiment needs it"


class DataMisplaced(ValueError):
    """An experiment on a user's own data was started without them, or another one with them."""

    remedy: ClassVar[str] = "give --data to question-answering, and to no other experiment"


def names(package: str) -> list[str]:
    """Return the names of a package's modules that define ``run``, with hyphens for underscores; none is imported."""
    return sorted(_sources(package))


def summary(package: str, name: str) -> str:
    """Return the first line of a module's docstring, without importing it."""
    return (ast.get_docstring(_sources(package)[name]) or "").partition("\n")[0]


def find(package: str, name: str) -> ModuleType:
    """Import the module of that name.

    Raises:
        UnknownName: when there is none; nothing has been imported then.
    """
    check(package, name)
    return import_module(f"{package}.{name.replace('-', '_')}")


def check(package: str, name: str) -> None:
    """Refuse a name that no module has.

    Raises:
        UnknownName: listing those there are.
    """
    known = names(package)
    if name not in known:
        raise UnknownName(f"{name!r} is none of {', '.join(known) or 'nothing: there are none yet'}")


def data_of(module: ModuleType, name: str, path: Path | None) -> dict[str, Any]:
    """Return the arguments with which an experiment's ``run`` reads a user's data; none if it brings its own.

    A module whose ``run`` takes ``data`` says in ``DATA`` what they must be.

    Raises:
        DataMisplaced: when data are missing, or given where none are read.
    """
    if "data" not in inspect.signature(module.run).parameters:
        if path is not None:
            raise DataMisplaced(f"the experiment {name} brings its own data; leave out --data")
        return {}
    if path is None:
        raise DataMisplaced(f"the experiment {name} needs {module.DATA}; name the file with --data")
    return {"data": path}


def reads_data(package: str, name: str) -> bool:
    """Return whether a module says in ``DATA`` that it reads a user's data, without importing it."""
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "DATA" for target in node.targets)
        for node in _sources(package)[name].body
    )


@cache
def _sources(package: str) -> dict[str, ast.Module]:
    """Return the syntax trees of the modules that define ``run``, by name."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = spec.submodule_search_locations[0]
    modules = {}
    for module in pkgutil.iter_modules([folder]):
        tree = ast.parse(Path(folder, f"{module.name}.py").read_text(encoding="utf-8"))
        if any(_defines_run(node) for node in tree.body):
            modules[module.name.replace("_", "-")] = tree
    return modules


def _defines_run(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "run" for target in node.targets)
    return isinstance(node, ast.FunctionDef) and node.name == "run"
