"""Precision: MNIST through devices of different bits, mismatch, offset and drift, each alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spu_lab.studies.study import Results, Study, describe_differences, find_differences
from spu_lab.studies.sweeps import Arm, Panel
from spu_lab.studies.verdicts import Verdict
from spu_link.errors import either

IDEAL = Arm("ideal device")


def panel(varied: str, name: str, values: Iterable[float], *parts: str, **fixed: str) -> Panel:
    """Return devices with each of the values for these parts of the board, others being fixed (``__`` for the dot)."""
    board = {part.replace("__", "."): value for part, value in fixed.items()}
    arms = [
        Arm(f"{name} {value:g}", value, device={"driver_option": {**board, **dict.fromkeys(parts, f"{value:g}")}})
        for value in values
    ]
    return Panel(varied, IDEAL, arms)


def judge(panels: Sequence[Panel], results: Results) -> list[Verdict]:
    """Return whether each fault, as large as is tried, leaves the test loss as it is."""
    return [
        Verdict(
            f"The test loss is that of the ideal device, with {panel.varied} of {_values(panel)}",
            describe_differences(panel, results),
            not find_differences(panel, results),
        )
        for panel in panels
    ]


def _values(panel: Panel) -> str:
    return either(f"{arm.value:g}" for arm in panel.arms)


SIXTEEN = {"preset": "paper-16-bit", "thermal__temperature": "0"}
CONVERTERS, RESISTORS = ("dac.bits", "adc.bits"), ("programming.bits",)

STUDY = Study(
    name="precision",
    title="Precision of the device: MNIST with TNGD, t = 50 τ",
    caption="One epoch; one fault each, no thermal noise, no calibration. η = 0.01, λ = 0.01, "
    "t_d = 0, b = 64. Bits that are not varied are 16.",
    panels=[
        panel("bits of converters (DAC and ADC)", "converters,", (3, 4, 6, 8), *CONVERTERS, **SIXTEEN),
        panel("bits of resistors", "resistors,", (3, 4, 6, 8), *RESISTORS, **SIXTEEN),
        panel(
            "bits of resistors, 4 dithered roundings averaged",
            "dithered,",
            (3, 4),
            *RESISTORS,
            **SIXTEEN,
            averaging__roundings="4",
        ),
        panel(
            "mismatch of the resistors, A and Aᵀ apart",
            "mismatch",
            (1e-2, 3e-2, 1e-1),
            "programming.mismatch",
            programming__separate="true",
        ),
        panel("offset of the drive, V at 1 V rails", "offset", (1e-5, 1e-4, 1e-3), "offsets.input", rails__volts="1.0"),
        # A run of 157 steps of 50 τ takes 8 ms of device time, so a drift of r in 1 s is one of r/11 at its end.
        panel("drift of reading gains in 1 s, relative", "drift", (1.0, 10.0, 30.0), "drift.rate"),
    ],
    common={"analog_time": 50.0, "epochs": 1},
    seeds=(0, 1, 2),
    judge=judge,
)

run = STUDY.reproduce
