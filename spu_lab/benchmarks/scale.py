"""Growth of time and memory with parameters N and rows m: one program and one reading, Monte-Carlo-like.

The operator is that of a network of six square linear layers, one Monte-Carlo sample for each of m samples, so N is six
times the square of the width. Inputs are random, feature j falling off as j^−½ as activations do, and positive like
those after a ReLU; the trace of F is 10, λ = 0.01, t = 50 τ, no noise. Each size runs on a device in a separate
process, whose largest resident memory is the kernel's own count (VmHWM): host and device together, with the operands,
the drive and the reading.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from host_client import connect
from spu_lab.benchmarks.memory import peak_bytes
from spu_lab.benchmarks.targets import Target
from spu_lab.benchmarks.timing import alone, log
from spu_link.operators import LayerRows, LinearRows

LAYERS = 6
TRACE = 10.0
SETTINGS: dict[str, Any] = {"damping": 0.01, "analog_time": 50.0, "start": "drive"}

RATIOS = {
    "scale_exponent_n": "slope of log time against log N from 1e5 parameters on, m = 64.",
    "scale_exponent_m": "slope of log time against log m from 1,024 rows on, N = 1e6.",
    "scale_vectors_of_float64": "peak memory at the largest N above that of idle, over a float64 vector of length N.",
}
TARGETS = {"scale_exponent_n": Target("at most", 1.05)}


def run(
    parameters: Sequence[int] = (10**4, 10**5, 10**6, 10**7, 10**8),
    rows: Sequence[int] = (64, 256, 1024, 2048, 4096, 8192),
    few_rows: int = 64,
    some_parameters: int = 10**6,
    repeats: int = 3,
) -> dict[str, Any]:
    """Measure each N with `few_rows`, and each m with `some_parameters`; exponents from the 1e5 and the 1024 on.

    Where fewer than two sizes lie beyond these, the exponents are over all sizes.
    """
    sizes = [(n, few_rows) for n in parameters] + [(some_parameters, m) for m in rows]
    points = []
    for n, m in sizes:
        log.info("N = %s, m = %s", f"{n:,}", f"{m:,}")
        points.append(alone(measure, n, m, repeats))
    by_n, by_m = points[: len(parameters)], points[len(parameters) :]
    largest = max(by_n, key=lambda point: point["parameters"])
    return {
        "ratios": {
            "scale_exponent_n": exponent(by_n, "parameters", 0.9e5),
            "scale_exponent_m": exponent(by_m, "rows", 1024),
            "scale_vectors_of_float64": largest["grown_bytes"] / (8 * largest["parameters"]),
        },
        "against_n": by_n,
        "against_m": by_m,
        "settings": {"layers": LAYERS, "trace": TRACE, "repeats": repeats, **SETTINGS},
    }


def measure(n: int, m: int, repeats: int) -> dict[str, float]:
    """Seconds and memory of program and reading in this process: the median after one that is not counted."""
    with connect("inproc:", timeout=300.0) as spu, spu.session() as session:
        idle = peak_bytes("self")
        operator = network_rows(n, m)
        drive = operator.adjoint(torch.randn(m))
        times = []
        for _ in range(1 + repeats):
            begin = time.perf_counter()
            reading = session.solve(operator, drive, **SETTINGS)
            times.append(time.perf_counter() - begin)
        assert reading.value.shape == drive.shape
    peak = peak_bytes("self")
    return {
        "parameters": operator.parameters,
        "rows": m,
        "seconds": median(times[1:]),
        "operand_bytes": operator.nbytes + drive.nbytes,
        "peak_bytes": peak,
        "grown_bytes": peak - idle,
    }


def network_rows(n: int, m: int) -> LayerRows:
    """Factor of about `n` parameters and `m` rows in six layers, the trace of AᵀA being `TRACE`."""
    torch.manual_seed(0)
    width = max(1, round(math.sqrt(n / LAYERS)))
    scale = torch.arange(1, width + 1) ** -0.5
    pairs = [((torch.randn(m, width) * scale).relu(), torch.randn(1, m, width) * scale) for _ in range(LAYERS)]
    trace = sum(float((a.square().sum(1) * d[0].square().sum(1)).sum()) for a, d in pairs)
    return LayerRows([LinearRows(a, d * math.sqrt(TRACE / trace), bias=False) for a, d in pairs])


def exponent(points: Sequence[dict[str, float]], x: str, start: float) -> float:
    """Return the least-squares slope of log time against log x from `start` on; over all points if these are few."""
    chosen = [point for point in points if point[x] >= start]
    if len(chosen) < 2:
        chosen = list(points)
    logs = np.log([[point[x], point["seconds"]] for point in chosen])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
