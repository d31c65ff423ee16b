"""A 400 MB upload, and what others notice of it: stalls of the daemon's event loop, and a second client's calls."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from host_client import connect
from spu_lab.benchmarks.targets import Target
from spu_lab.local_daemon import local_daemon
from spu_link.operators import Rows

ROWS, CELLS = 100, 1_000_000
START_SECONDS = 60.0
POLL_SECONDS = 0.02
"""Pause between two calls of the second client."""

RATIOS = {
    "longest_stall_vs_50ms": "longest stall of the daemon's event loop during the upload, over 50 ms.",
    "info_median_vs_250ms": "median time of a second client's information call during the upload, over 250 ms.",
}
TARGETS = {"longest_stall_vs_50ms": Target("at most", 1), "info_median_vs_250ms": Target("at most", 1)}


def run(uploads: int = 3) -> dict[str, Any]:
    """Measure over several uploads, one after the other; the second client is a separate process."""
    operator, drive = Rows(torch.ones(ROWS, CELLS)), torch.ones(CELLS)
    context = multiprocessing.get_context("spawn")
    spans: list[tuple[float, float]] = []
    with local_daemon(clock="stepped") as address:
        ours, theirs = context.Pipe()
        second = context.Process(target=_second_client, args=(address, theirs), daemon=True)
        second.start()
        theirs.close()
        try:
            if not ours.poll(START_SECONDS):
                raise TimeoutError(f"the second client did not start within {START_SECONDS:.0f} s")
            ours.recv()
            with connect(address) as spu, spu.session() as session:
                for _ in range(uploads):
                    begin = time.monotonic()
                    session.program(operator, drive, damping=1.0, start="drive")
                    spans.append((begin, time.monotonic()))
            ours.send("enough")
            calls: list[tuple[float, float, float]] = ours.recv()
        finally:
            second.kill()
            second.join()
    during = [call for call in calls if any(begin <= call[0] <= end for begin, end in spans)]
    seconds = sorted(call[1] for call in during)
    longest = max(call[2] for call in calls if call[0] >= spans[0][0])
    median = statistics.median(seconds)
    return {
        "ratios": {"longest_stall_vs_50ms": longest / 0.05, "info_median_vs_250ms": median / 0.25},
        "seconds": {
            "longest_stall": longest,
            "info_median": median,
            "info_p99": seconds[int(0.99 * len(seconds))],
            "info_longest": seconds[-1],
            "upload": statistics.median(end - begin for begin, end in spans),
        },
        "info_calls": len(during),
        "upload_bytes": operator.nbytes + drive.nbytes,
        "uploads": uploads,
    }


def _second_client(address: str, parent: Connection) -> None:
    """Ask for information over and over; send when each call began, its seconds, and the daemon's longest stall."""
    calls: list[tuple[float, float, float]] = []
    with connect(address) as spu:
        parent.send("ready")
        while not parent.poll(POLL_SECONDS):
            begin = time.monotonic()
            info = spu.info
            calls.append((begin, time.monotonic() - begin, info.longest_stall))
    parent.send(calls)
