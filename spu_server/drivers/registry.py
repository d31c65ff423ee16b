"""Drivers by name, found through the entry-point group ``spu_server.drivers``."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from spu_server.drivers.base import Driver, DriverOptions

GROUP = "spu_server.drivers"


def installed() -> dict[str, EntryPoint]:
    """Entry points of all drivers on this system, by name; none of them is loaded."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def open_driver(name: str, options: DriverOptions) -> Driver:
    """Load a driver's class and open its device.

    Raises:
        LookupError: when no such driver is installed; the message lists those that are.
        Exception: whatever the driver raises.
    """
    found = installed()
    if name not in found:
        raise LookupError(f"no driver named {name!r}; installed: {', '.join(found) or 'none'}")
    cls = found[name].load()
    driver: Driver = cls(options)
    return driver
