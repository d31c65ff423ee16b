"""How much memory there is to be had, as the operating system and the accelerator tell."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees the limit that its control group sets (version 2)."""


def available_memory() -> int:
    """Bytes that this process can take without swapping: what the machine has left, or the container."""
    machine: int = psutil.virtual_memory().available
    container = _container()
    return machine if container is None else max(0, min(machine, container))


def available_on(place: torch.device) -> int:
    """Bytes that tensors at `place` can take: there, what is free and what torch's cache holds unused."""
    if place.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(place)
    return free + torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)


def _container() -> int | None:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except FileNotFoundError:
        return None
    # Cached files count as used there, and give way.
    return int(limit) - used + int(statistics.get("inactive_file", 0))
