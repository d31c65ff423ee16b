"""Precision: MNIST through devices of different bits, mismatch, offset and drift, each alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from host_client.experiments.sweeps import Arm, Result, sweep, write
from host_client.tasks.mnist import mnist
from host_client.tasks.task import Task

SEEDS = (0, 1, 2)
EPOCHS = 1

BITS, MITIGATED, MISMATCH, OFFSET, DRIFT = "bits", "mitigated bits", "mismatch", "offset", "drift"

LABELS = {
    BITS: "bits of converters and resistors",
    MITIGATED: "bits, 8 dithered roundings averaged",
    MISMATCH: "mismatch between the arrays for A and Aᵀ",
    OFFSET: "offset of the drive, V at 1 V rails",
    DRIFT: "drift of reading gains in 1 s, relative",
}
"""Properties, and what their values are."""


def run(out: Path, spu: str | None, console: Console) -> None:
    """Run all devices and seeds.

    Args:
        out: folder for ``precision.csv``, ``.json``, ``.md`` and ``.png``.
        spu: not taken: each run has a device of its own.
        console: where to show it.

    Raises:
        ValueError: when a device is given.
        DataUnavailable, SpuError: when data or device is missing.
    """
    if spu is not None:
        raise ValueError("precision makes devices of its own, in this process; leave out --spu")
    study(out, mnist(), console, seeds=SEEDS, epochs=EPOCHS)


def arms() -> list[Arm]:
    """The ideal device first, then those with one fault each."""
    of_bits = [Arm(BITS, b, board=_of_bits(b)) for b in (3, 4, 6, 8, 12, 16)]
    mitigated = [Arm(MITIGATED, b, board={**_of_bits(b), "averaging.roundings": "8"}) for b in (3, 4, 6)]
    mismatch = [
        Arm(MISMATCH, size, board={"programming.mismatch": str(size), "programming.separate": "true"})
        for size in (1e-4, 1e-3, 1e-2, 1e-1)
    ]
    offset = [
        Arm(OFFSET, size, board={"offsets.input": str(size), "rails.volts": "1.0"}) for size in (1e-5, 1e-4, 1e-3)
    ]
    # A run of 156 steps of 50 τ takes 8 ms of device time, so a drift of r √1s shows as r √8ms at its end.
    drift = [Arm(DRIFT, size, board={"drift.rate": str(size)}) for size in (0.1, 1.0, 10.0)]
    return [Arm(BITS, float("inf")), *of_bits, *mitigated, *mismatch, *offset, *drift]


def study(
    out: Path,
    task: Task,
    console: Console,
    *,
    seeds: Sequence[int],
    epochs: int,
    steps: int | None = None,
    devices: Sequence[Arm] | None = None,
) -> list[Result]:
    """The experiment on a task, for so many epochs, or `steps` if given; on some `devices`, the first the reference."""
    common = {"analog_time": 50.0, "epochs": epochs} | ({"steps": steps} if steps else {})
    devices = arms() if devices is None else devices
    results = sweep(task, devices, common, seeds, console)
    present = {r.arm.varied for r in results}
    write(
        out,
        "precision",
        results,
        dict.fromkeys(present, results[0]),
        console,
        title="Precision of the device: MNIST with TNGD, t = 50 τ",
        caption=f"Mean ± standard deviation over {len(seeds)} seeds; one fault each; the band is the ideal device. "
        "η = 0.01, λ = 0.01, t_d = 0, b = 64. No calibration.",
        labels={name: label for name, label in LABELS.items() if name in present},
    )
    return results


def _of_bits(bits: int) -> dict[str, str]:
    return {"preset": "paper-16-bit", "thermal.temperature": "0"} | {
        f"{part}.bits": str(bits) for part in ("dac", "adc", "programming")
    }
