"""The words above a picture of a run, from its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from host_client.record import ClockAgreed, Record
from spu_lab.timeline.elements import Timeline
from spu_lab.timeline.turns import Together, measure_turns
from spu_lab.timeline.window import Window
from spu_lab.training.report import in_tau

TOGETHER: Mapping[Together, str] = {
    "evolves": "the device evolves while the host differentiates",
    "computes": "the emulator computes while the host differentiates",
    "nothing": "host and device take turns",
}


def headline(timeline: Timeline, window: Window) -> str:
    """The steps seen whole, and what host and device did at the same time."""
    inside: set[int] = set()
    outside: set[int] = set()
    for bar in timeline.of("differentiation", "update"):
        (inside if window.began <= bar.began and bar.ended <= window.ended else outside).add(bar.number)
    whole = sorted(inside - outside or inside)
    steps = "No step"
    if whole:
        steps = f"Step {whole[0]}" if len(whole) == 1 else f"Steps {whole[0]} to {whole[-1]}"
    if not timeline.of("program"):
        return f"{steps}, without a device"
    lost = [gap for gap in timeline.gaps if window.began < gap.began < window.ended]
    if lost:
        back = lost[-1].returned and lost[-1].ended < window.ended
        return f"{steps}: the device is lost" + (" and comes back" if back else "")
    if timeline.unit == "τ":
        return f"{steps}, in device time"
    turns = measure_turns(timeline, window)
    if turns is None:
        return f"{steps}, without a reading"
    return f"{steps}: {TOGETHER[turns.together]}"


def describe_measurements(timeline: Timeline, window: Window) -> str:
    """The paper's two times, the age of the readings and the overlap, as measured in these steps; empty without any."""
    turns = measure_turns(timeline, window)
    if turns is None:
        return ""
    parts = [f"measured medians: t = {in_tau(turns.analog_time)}"]
    parts += [f"t_d = {in_tau(turns.delay)}"] if turns.delay is not None else []
    youngest, oldest = turns.ages
    if oldest == 0:
        parts.append("each update uses the reading of its own step")
    else:
        steps = f"{oldest}" if youngest == oldest else f"{youngest} to {oldest}"
        parts.append(f"readings are {steps} step{'s' if oldest > 1 else ''} old when used")
    if timeline.unit == "s" and oldest > 0:
        parts.append(f"{turns.evolution:.0%} of the analog time overlaps with differentiation")
        if turns.computing is not None and turns.together == "computes":
            parts[-1] = f"{turns.computing:.0%} of the emulator's computing overlaps with differentiation"
    return ", ".join(parts)


def subtitle(record: Record) -> str:
    """Return the settings of the run, as far as its header says, and the error of device times."""
    header, parts = record.header, []
    device: Mapping[str, Any] = header.get("device") or {}
    settings: Mapping[str, Any] = header.get("settings") or {}
    parts += [f"optimizer {settings['optimizer']}"] if "optimizer" in settings else []
    parts += [f"b = {settings['batch_size']}"] if "batch_size" in settings else []
    parts += [f"device {device['driver']}"] if "driver" in device else []
    if device.get("clock") == "stepped":
        parts.append("stepped clock")
    elif "rate_tau_per_s" in device:
        parts.append(f"{device['rate_tau_per_s']:,.9g} τ a second")
    errors = sorted(agreed.error for agreed in record.of(ClockAgreed) if agreed.rate)
    parts += [f"device times within {1e3 * errors[len(errors) // 2]:.2g} ms of host times"] if errors else []
    return ", ".join(parts)
