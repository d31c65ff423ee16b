"""Distributions with drivers, as pip would leave them, in a folder of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def distribution(folder: Path, name: str, drivers: Mapping[str, str]) -> Path:
    """A distribution with entry points ``{driver: "module:Class"}``; the folder belongs on PYTHONPATH."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{driver} = {target}\n" for driver, target in drivers.items())
    (info / "entry_points.txt").write_text(f"[spu_server.drivers]\n{lines}")
    return folder
