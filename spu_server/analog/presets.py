"""Boards by name, with the source of their values. What a source does not give stays ideal."""

from __future__ import annotations

import dataclasses

from spu_server.analog.breadboard import ResistorNetwork
from spu_server.analog.cells import Thermal
from spu_server.analog.converters import AnalogToDigital, DigitalToAnalog
from spu_server.analog.hardware import AnalogBoard, Calibration, Rails
from spu_server.analog.programming import Programming
from spu_server.timing import Timing


def _of_bits(bits: int, source: str) -> AnalogBoard:
    """The paper's device with converters and resistors of so many bits, at room temperature."""
    return AnalogBoard(
        source=source,
        tau=1e-6,
        dac=DigitalToAnalog(bits=bits, range=1.0),
        adc=AnalogToDigital(bits=bits, range=1.0),
        programming=Programming(bits=bits, separate=True),
        rails=Rails(volts=1.0),
        thermal=Thermal(temperature=300.0, capacitance=1e-9),
        timing=Timing(bits=bits, arrays="paper"),
    )


PAPER = "Donatella et al., arXiv 2405.13817: 16 bits, 50 Gb/s, R = 1 kΩ, C = 1 nF; range 1 V and 300 K are ours"

TWO_NODES = ResistorNetwork(
    resistors=(4690.0, 4680.0, 6830.0, 9900.0),
    capacitors=(23.50e-9, 23.51e-9),
    rms=0.7097e-3,
    tau=1e-4,
)

PRESETS: dict[str, AnalogBoard] = {
    "ideal": AnalogBoard(),
    "paper-16-bit": _of_bits(16, PAPER),
    "8-bit": _of_bits(8, f"{PAPER}; 8 bits in place of 16"),
    "4-bit": _of_bits(4, f"{PAPER}; 4 bits in place of 16"),
    "eight-cell": AnalogBoard(
        source=(
            "Melanson et al., Nature Communications (2025), arXiv 2312.04836: 8 cells, all-to-all coupled, noise from "
            "an FPGA, sampled at 12 MHz. Its cells are RLC circuits; here they are first order. Bits and mismatch are "
            "ours: 8 bits and 1 %, as of switched banks of discrete parts"
        ),
        cells=8,
        dac=DigitalToAnalog(bits=8, range=1.0),
        adc=AnalogToDigital(bits=8, range=1.0),
        programming=Programming(bits=8, mismatch=0.01),
        rails=Rails(volts=1.0),
        thermal=Thermal(temperature=300.0, capacitance=1e-9),
        calibration=Calibration(readings=16),
        timing=Timing(bits=8, sample=1.0 / 12e6),
    ),
    "two-node": AnalogBoard(
        source=(
            "colinc86/thermodynamic-solver: R1 to R4 4.690, 4.680, 6.830, 9.900 kΩ, C1 and C2 23.50 and 23.51 nF, all "
            "measured. The noise is fitted to the published 0.7097 mV rms of node 1, which no relative error depends on"
        ),
        cells=2,
        tau=TWO_NODES.tau,
        network=TWO_NODES,
    ),
}


def preset(name: str) -> AnalogBoard:
    """A board by name.

    Raises:
        ValueError: for a name that is not known; the message lists those that are.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset named {name!r}; known: {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name])
