"""The memory that can be allocated, as the operating system and the accelerator report it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
"""The folder with the memory limit of a container's control group (version 2)."""


def available_memory() -> int:
    """Return the bytes that this process can allocate without swapping, on this machine or in this container."""
    machine: int = psutil.virtual_memory().available
    container = _container()
    return machine if container is None else max(0, min(machine, container))


def available_on(place: torch.device) -> int:
    """Return the bytes that tensors at `place` can take: on an accelerator, free memory and unused cache of torch."""
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
