"""Provenance of a result: versions, machine and command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("tngd-spu", "torch", "numpy", "grpcio", "protobuf")

COMPARED = (
    "thermox",
    "jax",
    "backpack-for-pytorch",
    "curvlinops-for-pytorch",
    "netket",
    "optax",
    "optuna",
    "transformers",
    "peft",
)
"""Packages that benchmarks and tests compare with or train, where they are installed."""


def provenance() -> dict[str, Any]:
    """Command line, date, versions, git commit where there is one, and the machine, ready for JSON."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions()},
        "commit": git_commit(),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
    }


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {name: version(name) for name in PACKAGES}
    for name in COMPARED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_commit() -> str | None:
    """Commit of the checkout this code lies in, with ``-dirty`` where files differ; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """Name of the processor, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
