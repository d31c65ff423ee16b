"""Drivers by name, found through the entry-point group ``spu_server.drivers``.

Only the driver that is named is ever loaded, so another one that is broken cannot hurt.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar

from spu_server.drivers.base import INTERFACE, Driver, DriverOptions

GROUP = "spu_server.drivers"

OLDEST_INTERFACE = 1
"""Oldest version of the interface whose drivers still do."""

LOAD_SECONDS = 60.0
"""Timeout of loading a driver where drivers are listed, in seconds."""


class DriverUnusable(Exception):
    """A driver that is installed and cannot be used, with its distribution's name."""

    remedy: ClassVar[str] = (
        "install the distribution that the message names again, or one for this version of the driver interface"
    )


def installed_drivers() -> list[EntryPoint]:
    """Entry points of all drivers on this system, in the order of their names; none of them is loaded."""
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


def distribution_of(entry: EntryPoint) -> str:
    """Name and version of the distribution that an entry point comes with."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def find_driver(name: str) -> EntryPoint:
    """Return a driver's entry point, without loading it.

    Raises:
        LookupError: when no such driver is installed; the message lists those that are.
        DriverUnusable: when there are two of the name.
    """
    entries = installed_drivers()
    matching = [entry for entry in entries if entry.name == name]
    if not matching:
        names = ", ".join(dict.fromkeys(entry.name for entry in entries))
        raise LookupError(f"no driver named {name!r}; installed: {names or 'none'}")
    if len(matching) > 1:
        both = " and ".join(map(distribution_of, matching))
        raise DriverUnusable(f"there are {len(matching)} drivers named {name!r}, of {both}; uninstall all but one")
    return matching[0]


def load_driver(name: str) -> type[Driver]:
    """A driver's class.

    Raises:
        LookupError: when no such driver is installed; the message lists those that are.
        DriverUnusable: when it cannot be loaded, is no driver of this interface, or when there are two of the name.
    """
    entry = find_driver(name)
    whose = f"driver {name!r} of {distribution_of(entry)}"
    try:
        cls = entry.load()
    except Exception as error:
        raise DriverUnusable(f"{whose} cannot be loaded: {error!r}") from error
    if not (isinstance(cls, type) and issubclass(cls, Driver)):
        raise DriverUnusable(f"{whose} is {cls!r}, which is no subclass of spu_server.drivers.base.Driver")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise DriverUnusable(f"{whose} lacks {', '.join(missing)}")
    if not OLDEST_INTERFACE <= cls.interface <= INTERFACE:
        raise DriverUnusable(
            f"{whose} was written for version {cls.interface} of the driver interface; this daemon knows "
            f"{OLDEST_INTERFACE} to {INTERFACE}"
        )
    return cls


def open_driver(name: str, options: DriverOptions) -> Driver:
    """Load a driver's class and open its device.

    Raises:
        LookupError: when no such driver is installed.
        DriverUnusable: when it cannot be loaded.
        Exception: whatever the driver raises.
    """
    return load_driver(name)(options)


def problems(names: Sequence[str]) -> list[str]:
    """Return why each of these drivers cannot be loaded; empty where it can. Each is tried in a separate process."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(_problem, names))


def _problem(name: str) -> str:
    code = "import sys; from spu_server.drivers.registry import load_driver; load_driver(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, timeout=LOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"is not loaded within {LOAD_SECONDS:g} s"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"ends its process with signal {-done.returncode} when it is loaded"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].partition(": ")[2] or "unknown"
