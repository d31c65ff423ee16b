"""A solve under the operator that the device holds, and the device's state, on the reference network.

The factor is that of a batch of 64 with random weights, exact or by one Monte-Carlo sample; t = 50 τ, λ = 0.01, start
from the drive. Solves with their operator and without take turns, through a daemon.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from host_client import Session, connect
from host_client.curvature import Capture
from spu_lab.benchmarks.networks import Network, reference
from spu_lab.local_daemon import local_daemon
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_link.operators import Kept, Operator

KINDS = ("exact", "mc")

RATIOS = {
    "kept_vs_full_exact": "a solve whose operator the device keeps, over one that brings it; exact curvature.",
    "kept_vs_full_mc": "the same for a Monte-Carlo curvature.",
    "save_vs_full_exact": "saving the device's state, over a solve that brings its operator; exact curvature.",
    "restore_vs_full_exact": "the same for restoring it.",
}


def run(batch: int = 64, rounds: int = 30, task: Callable[[], Task] = mnist) -> dict[str, Any]:
    """Measure over `rounds`; in each of them everything has its turn."""
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    with local_daemon(clock="stepped") as address, connect(address) as spu, spu.session() as session:
        for kind in KINDS:
            operator, drive = _curvature(reference(batch, task), kind)
            times, state = _times(session, operator, drive, rounds)
            seconds |= {f"{name}_{kind}": median(values) for name, values in times.items()}
            sizes |= {f"operator_{kind}": operator.nbytes, f"drive_{kind}": drive.nbytes, f"state_{kind}": len(state)}
    return {
        "ratios": {
            "kept_vs_full_exact": seconds["kept_exact"] / seconds["full_exact"],
            "kept_vs_full_mc": seconds["kept_mc"] / seconds["full_mc"],
            "save_vs_full_exact": seconds["save_exact"] / seconds["full_exact"],
            "restore_vs_full_exact": seconds["restore_exact"] / seconds["full_exact"],
        },
        "seconds": seconds,
        "bytes": sizes,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }


def _curvature(network: Network, kind: str) -> tuple[Operator, Tensor]:
    """The factor of one batch, and the gradient."""
    capture = Capture(network.model, network.criterion, curvature="exact" if kind == "exact" else "mc")
    network.loss().backward()
    operator = capture.operator
    capture.close()
    gradients = (parameter.grad for parameter in network.trained())
    return operator, torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def _times(session: Session, operator: Operator, drive: Tensor, rounds: int) -> tuple[dict[str, list[float]], bytes]:
    times: dict[str, list[float]] = {"full": [], "kept": [], "save": [], "restore": []}
    state = b""

    def solve(one: Operator) -> int:
        return session.solve(one, drive, analog_time=50.0, damping=0.01, start="drive").sequence

    for _ in range(rounds + 1):
        begin = time.perf_counter()
        sequence = solve(operator)
        solved = time.perf_counter()
        solve(Kept(sequence, operator.parameters))
        kept = time.perf_counter()
        state = session.save_state()
        saved = time.perf_counter()
        session.restore_state(state)
        restored = time.perf_counter()
        for name, one in zip(times, (solved - begin, kept - solved, saved - kept, restored - saved), strict=True):
            times[name].append(one)
    return {name: values[1:] for name, values in times.items()}, state  # the first round warms up
