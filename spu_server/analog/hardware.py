"""A board: all that distinguishes a real device from the ideal one, each part by itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from spu_server.analog.breadboard import ResistorNetwork
from spu_server.analog.cells import Amplifier, GainDrift, Offsets, Thermal
from spu_server.analog.converters import AnalogToDigital, DigitalToAnalog
from spu_server.analog.programming import Programming
from spu_server.checks import positive
from spu_server.timing import Timing

MIN_HEADROOM, MAX_HEADROOM = 64.0, 1000.0
"""Bounds of the headroom that is chosen for a program: with more, noise and offsets weigh more than clipping costs."""


@dataclass(frozen=True)
class Rails:
    """The range of the cells' voltages, and with it the scale: how many volts one unit of the problem is.

    Source: the output swing of operational amplifiers, as in any data sheet; the choice of the scale is ours.
    """

    volts: float = math.inf
    """Voltage at which a cell saturates, V, either way. inf: never, and one unit of the problem is 1 V. What has gone
    beyond is set to the rail when it is read and when the next program takes effect, and counted; on the way there the
    motion stays linear, which a real amplifier's is not."""

    headroom: float | None = None
    """Ratio to the drive's largest value that a state may reach before it is at the rail. None: chosen
    for each program, see `scale`. A program whose start is given sets the scale; one that keeps the cells' state keeps
    the scale, since voltages cannot be rescaled."""

    def __post_init__(self) -> None:
        positive(self, "volts", *["headroom"] * (self.headroom is not None))

    def scale(self, drive: float, start: float, damping: float) -> float:
        """Volts per unit of the problem.

        Without a headroom given, it is 1/λ, by which a solution without curvature grows, but at least 64, for the
        programs that keep this scale, and at most 1000. A start is given room to grow by four.

        Args:
            drive: largest value of the drive.
            start: largest value of the start.
            damping: λ.
        """
        if math.isinf(self.volts):
            return 1.0
        if self.headroom is not None:
            reach = self.headroom * drive
        else:
            reach = max(
                min(max(1.0 / damping if damping else math.inf, MIN_HEADROOM), MAX_HEADROOM) * drive, 4.0 * start
            )
        return self.volts / reach if reach > 0.0 else 1.0


@dataclass(frozen=True)
class Averaging:
    """Error mitigation: the same program, rounded in several ways, and its readings averaged (see `rounding`).

    Source: Aifer et al., arXiv 2401.16231.
    """

    roundings: int = 1
    """Number of dithered roundings of operator, drive and start that run at the same time. 1: plain rounding."""

    def __post_init__(self) -> None:
        positive(self, "roundings")


@dataclass(frozen=True)
class Calibration:
    """Offsets and gains are measured by running the device on known problems (see `Channels.calibrate`).

    Source: the zero and full-scale calibration of any measuring instrument; the four problems are ours.
    """

    readings: int = 0
    """Readings averaged for each of four known problems. 0: no calibration."""

    every: float = math.inf
    """Seconds of device time after which it is repeated, before the next program takes effect. inf: once."""


@dataclass(frozen=True)
class AnalogBoard:
    """All parts of a board. The default of each is ideal."""

    source: str = "no board: the equation itself"
    """Source of the values."""

    cells: int | None = None
    """Cells the board has; None: as many as the daemon's options say."""

    tau: float | None = None
    """Time constant, s; None: as the daemon's options say."""

    dac: DigitalToAnalog = field(default_factory=DigitalToAnalog)
    """Converters for drive and start."""

    adc: AnalogToDigital = field(default_factory=AnalogToDigital)
    """Converters for readings."""

    programming: Programming = field(default_factory=Programming)
    """Arrays of resistors."""

    rails: Rails = field(default_factory=Rails)
    """Range of the cells, and the scale."""

    thermal: Thermal = field(default_factory=Thermal)
    """Thermal noise."""

    amplifier: Amplifier = field(default_factory=Amplifier)
    """Operational amplifiers."""

    offsets: Offsets = field(default_factory=Offsets)
    """Offsets and their 1/f drift."""

    drift: GainDrift = field(default_factory=GainDrift)
    """Drift of the reading channels' gain."""

    averaging: Averaging = field(default_factory=Averaging)
    """Error mitigation."""

    calibration: Calibration = field(default_factory=Calibration)
    """Calibration."""

    timing: Timing = field(default_factory=Timing)
    """Modelled time and energy."""

    network: ResistorNetwork | None = None
    """A network soldered once and for all; None: programmable."""

    @property
    def ideal(self) -> bool:
        """True if the board follows the equation exactly."""
        plain = AnalogBoard()
        return dataclasses.replace(self, source=plain.source, cells=None, tau=None, timing=plain.timing) == plain

    def with_settings(self, settings: Mapping[str, str]) -> AnalogBoard:
        """The board with fields set by name, such as ``{"dac.bits": "8", "rails.volts": "inf"}``.

        Raises:
            ValueError: naming the setting, for a part or field that does not exist or a value that it cannot have.
        """
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        parts = {name: part for name, part in parts.items() if dataclasses.is_dataclass(part) and name != "network"}
        changes: dict[str, dict[str, Any]] = {}
        for name, text in settings.items():
            part, _, attribute = name.partition(".")
            if not attribute or part not in parts:
                raise ValueError(f"setting {name!r} is not PART.FIELD with a part of the board: {', '.join(parts)}")
            types = get_type_hints(type(parts[part]))
            if attribute not in types:
                raise ValueError(f"setting {name!r}: {part} has the fields {', '.join(types)}")
            changes.setdefault(part, {})[attribute] = _parse(name, text, types[attribute])
        replaced = {part: dataclasses.replace(parts[part], **fields) for part, fields in changes.items()}
        return dataclasses.replace(self, **replaced)


def _parse(name: str, text: str, kind: Any) -> Any:
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        if text in choices:
            return text
        raise ValueError(f"setting {name!r} is {text!r}; expected {' or '.join(choices)}")
    if type(None) in choices:
        if text.lower() == "none":
            return None
        kind = next(choice for choice in choices if choice is not type(None))
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError(f"setting {name!r} is {text!r}; expected true or false")
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"setting {name!r} is {text!r}; expected a number of type {kind.__name__}") from None
    if not value >= 0:
        raise ValueError(f"setting {name!r} is {text!r}; expected a number, at least 0")
    return value
