"""Memory of the daemon and its driver for a million parameters with explicit rows: one program and one reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

from host_client import connect
from spu_lab.benchmarks.targets import Target
from spu_lab.local_daemon import local_daemon
from spu_link.operators import Rows

VECTORS = 10
GIB = 1 << 30

RATIOS = {
    "peak_vs_bound": "max memory ever resident in the daemon's processes together, over operands plus ten float64 "
    "vectors of length N plus 1 GiB.",
    "growth_vs_operands": "its growth with the program, over the operands' bytes.",
}
TARGETS = {"peak_vs_bound": Target("at most", 1)}


def run(rows: int = 640, cells: int = 1_000_000) -> dict[str, Any]:
    """Measure; the peaks are the kernel's own (VmHWM), so that nothing falls between two samples."""
    operator = Rows(torch.randn(rows, cells).mul_(cells**-0.5))
    drive = torch.randn(cells)
    with local_daemon(clock="stepped") as address, connect(address, timeout=300.0) as spu:
        processes = family(address)
        idle = sum(peak_bytes(process) for process in processes)
        with spu.session(ttl=60.0) as session:
            reading = session.solve(operator, drive, damping=0.1, noise=1e-6, analog_time=5.0, start="drive")
        assert reading.value.shape == (cells,)
        peak = sum(peak_bytes(process) for process in processes)
    operands = operator.nbytes + drive.nbytes
    bound = operands + VECTORS * 8 * cells + GIB
    return {
        "ratios": {"peak_vs_bound": peak / bound, "growth_vs_operands": (peak - idle) / operands},
        "bytes": {"peak": peak, "idle": idle, "operands": operands, "bound": bound},
        "rows": rows,
        "cells": cells,
    }


def family(address: str) -> list[int]:
    """Process ids of the daemon at an address, and of its children."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if "serve" in (process.info["cmdline"] or ()) and address in process.info["cmdline"]:
            return [process.pid, *(child.pid for child in process.children(recursive=True))]
    raise LookupError(f"no daemon on this machine listens on {address}")


def peak_bytes(pid: int | str) -> int:
    """Return the max bytes ever resident in a process, given by its number or as ``"self"``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"process {pid} has ended")
