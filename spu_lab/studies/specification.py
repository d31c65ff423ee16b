"""The specification of a device: the properties that are varied, each alone, and the limit of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

from host_client.blocking import Session
from spu_lab.studies.refinement import RefinedReadings

FACTOR: Final = 3.0
"""Ratio to the ideal device's error up to which a device is good enough."""

REFINEMENTS: Final = 2
"""Corrections of a reading on a device that refines."""

READINGS: Final = 4
"""Readings averaged on a device that averages, each with roundings and noise of its own."""


@dataclass(frozen=True)
class Device:
    """A device and how it is asked.

    Attributes:
        analog_time: t of a reading, in τ.
        damping: λ.
        noise: κ₀, for drives whose largest value is 1.
        refinements: max number of corrections of a reading.
        board: settings of the driver ``analog`` by name.
    """

    analog_time: float = 1e6
    damping: float = 1e-5
    noise: float = 0.0
    refinements: int = 0
    board: Mapping[str, str] = field(default_factory=dict)

    def solver(self, session: Session) -> RefinedReadings:
        """Return the solver on a session of such a board."""
        return RefinedReadings(session, self.analog_time, self.noise, self.refinements)

    def with_board(self, **settings: Any) -> Device:
        """Return a device with further settings of its board; ``__`` stands for the dot of a name."""
        named = {name.replace("__", "."): f"{value}" for name, value in settings.items()}
        return replace(self, board={**self.board, **named})


IDEAL: Final = Device()
"""Settled, exact and without noise; λ is that of the 16-bit device of `pinn`, and t is 10/λ."""

PLAIN, REFINED, AVERAGED = "plain", f"{REFINEMENTS} refinements", f"{READINGS} readings averaged"


@dataclass(frozen=True)
class Knob:
    """A property of the device.

    Attributes:
        name: in files.
        title: for people, with the unit.
        values: that are tried, from good to bad.
        change: returns a device with a value.
        averages: whether an average of readings differs from one of them.
    """

    name: str
    title: str
    values: Sequence[float]
    change: Callable[[float], Device]
    averages: bool = False

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways to read the device."""
        return (PLAIN, REFINED, AVERAGED) if self.averages else (PLAIN, REFINED)

    def device(self, value: float, way: str) -> Device:
        """Return the device with a value, read in a way."""
        device = self.change(value)
        if way == REFINED:
            return replace(device, refinements=REFINEMENTS)
        return device.with_board(averaging__roundings=READINGS) if way == AVERAGED else device


def _converters(bits: float) -> Device:
    """Return a device with drives and readings of so many bits; its rails leave room for solutions of size 1/λ."""
    return IDEAL.with_board(dac__bits=int(bits), adc__bits=int(bits), rails__volts=1.0, rails__headroom=1e6)


KNOBS: Final = (
    Knob("t", "analog time t, τ", (1e5, 1e4, 1e3, 1e2, 1e1), lambda t: replace(IDEAL, analog_time=t)),
    Knob("noise", "noise κ₀", (1e-10, 1e-8, 1e-6, 1e-4, 1e-2), lambda k: replace(IDEAL, noise=k), averages=True),
    Knob("converters", "bits of converters (DAC and ADC)", (24, 22, 20, 18, 16, 14, 12), _converters, averages=True),
    Knob(
        "resistors",
        "bits of resistors",
        (24, 20, 18, 16, 14, 12, 10, 8),
        lambda bits: IDEAL.with_board(programming__bits=int(bits)),
        averages=True,
    ),
    Knob(
        "mismatch",
        "mismatch of resistors, relative",
        (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
        lambda sigma: IDEAL.with_board(programming__mismatch=sigma),
    ),
    Knob("damping", "damping λ", (1e-5, 1e-4, 1e-3, 1e-2), lambda damping: replace(IDEAL, damping=damping)),
)
"""Each alone, from good to bad. Mismatch is that of one array, used forwards and backwards."""


def find_limit(knob: Knob, errors: Mapping[float, Sequence[float]], ideal: Sequence[float]) -> float | None:
    """Return the worst value up to which all medians are within `FACTOR` of the ideal device's; None if none is.

    Args:
        knob: what is varied.
        errors: of all seeds, by value.
        ideal: errors of the ideal device.
    """
    limit = None
    for value in knob.values:
        if not median(errors[value]) <= FACTOR * median(ideal):
            break
        limit = value
    return limit


def is_looser(knob: Knob, limit: float | None, reference: float | None) -> bool:
    """Return whether a limit is a worse value, which a device meets more easily, than another one."""
    order = (None, *knob.values)
    return order.index(limit) > order.index(reference)
