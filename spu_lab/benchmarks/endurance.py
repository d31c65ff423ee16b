"""Ten thousand steps of a small network in the free-running loop through a daemon: what grows, and what is left.

A network of 8,736 parameters, 32 samples, one Monte-Carlo label each; each step uses the reading of the program
before (`NoOlderThan(programs=1)`), on a free-running device. Memory is resident memory, the median of samples taken
during the second thousand steps (when caches have filled) and during the last thousand.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import nn

from host_client import TNGD, connect
from host_client.loop import NoOlderThan
from spu_lab.benchmarks.memory import family
from spu_lab.benchmarks.targets import Target
from spu_lab.benchmarks.timing import alone, log
from spu_lab.local_daemon import local_daemon

SETTINGS: dict[str, Any] = {"lr": 1e-3, "damping": 0.1, "analog_time": 50.0}

SETTLE_SECONDS = 5.0
"""Max time after the session for the daemon to release its memory, in seconds."""

RATIOS = {
    "growth_host": "memory of the training process at the end, over that after the first thousand steps.",
    "growth_daemon": "the same of the daemon's processes, the driver's included, together.",
    "descriptors_left": "open descriptors of both sides at the end, over those after the first thousand steps, the "
    "fewest seen of each: uploads under way have some open.",
    "regions_left": "regions of shared memory that the daemon still has after the session has ended, over one.",
    "uploads_lost": "steps whose program neither took effect nor was dropped, over one.",
    "milliseconds_a_step": "wall time of a step.",
}
TARGETS = {
    "growth_host": Target("at most", 1.05),
    "growth_daemon": Target("at most", 1.05),
    "descriptors_left": Target("at most", 1),
    "regions_left": Target("at most", 0),
    "uploads_lost": Target("at most", 0),
}


def run(steps: int = 10_000, window: int = 1_000) -> dict[str, Any]:
    """Measure, in a separate process.

    Args:
        steps: in all.
        window: steps before the first samples, and those during which samples are taken.
    """
    return alone(_train, steps, window)


def _train(steps: int, window: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 24), nn.Tanh(), nn.Linear(24, 8))
    criterion = nn.CrossEntropyLoss()
    inputs, targets = torch.randn(32, 64), torch.randint(8, (32,))
    early, late = list[Sample](), list[Sample]()
    with local_daemon() as address, connect(address, timeout=300.0) as spu:
        daemon = family(address)
        with spu.session() as session:
            optimizer = TNGD(model, criterion, session, curvature="mc", freshness=NoOlderThan(programs=1), **SETTINGS)
            began = time.perf_counter()
            for number in range(steps):
                criterion(model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()
                if number % max(1, window // 20) == 0:
                    if window <= number < 2 * window:
                        early.append(Sample(daemon))
                    elif number >= steps - window:
                        late.append(Sample(daemon))
                if number % 1000 == 0:
                    log.info("%d of %d steps", number, steps)
            seconds = (time.perf_counter() - began) / steps
        counts = dict(optimizer.counts)
        deadline = time.monotonic() + SETTLE_SECONDS
        while (left := sum(_regions(pid) for pid in daemon)) and time.monotonic() < deadline:
            time.sleep(0.01)  # the driver's process hears of it last
    return {
        "ratios": {
            "growth_host": median(s.host for s in late) / median(s.host for s in early),
            "growth_daemon": median(s.daemon for s in late) / median(s.daemon for s in early),
            "descriptors_left": min(s.descriptors for s in late) / min(s.descriptors for s in early),
            "regions_left": left,
            "uploads_lost": max(0, steps - counts["uploads"] - counts.get("dropped", 0) - 1),
            "milliseconds_a_step": 1e3 * seconds,
        },
        "counts": counts,
        "bytes": {
            "host": [median(s.host for s in early), median(s.host for s in late)],
            "daemon": [median(s.daemon for s in early), median(s.daemon for s in late)],
        },
        "settings": {**SETTINGS, "steps": steps, "window": window},
    }


class Sample:
    """Resident memory and open descriptors at one moment.

    Args:
        daemon: process ids of the daemon's processes.

    Attributes:
        host: bytes of this process.
        daemon: bytes of the daemon's.
        descriptors: open ones of all of them.
    """

    def __init__(self, daemon: list[int]) -> None:
        mine, theirs = psutil.Process(os.getpid()), [psutil.Process(pid) for pid in daemon]
        self.host = mine.memory_info().rss
        self.daemon = sum(process.memory_info().rss for process in theirs)
        self.descriptors = sum(process.num_fds() for process in (mine, *theirs))


def _regions(pid: int) -> int:
    """Descriptors of clients' memory that a process has open."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += "spu-shared" in str(descriptor.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
    return found
