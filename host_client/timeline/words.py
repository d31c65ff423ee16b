"""What is written above a picture of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from host_client.record import ClockAgreed, Record
from host_client.timeline.elements import Timeline
from host_client.timeline.window import Window


def headline(timeline: Timeline, window: Window) -> str:
    """Which steps are seen, and what of them."""
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
        back = "the device is lost and comes back" if lost[-1].ended < window.ended else "the device is lost"
        return f"{steps}: {back}"
    return (
        f"{steps}: the device evolves while the host differentiates"
        if timeline.unit == "s"
        else f"{steps}, in device time"
    )


def subtitle(record: Record) -> str:
    """What the run was made with, as far as its header says, and how well device times are placed."""
    header, parts = record.header, []
    device: Mapping[str, Any] = header.get("device") or {}
    settings: Mapping[str, Any] = header.get("settings") or {}
    parts += [f"optimizer {settings['optimizer']}"] if "optimizer" in settings else []
    parts += [f"b = {settings['batch_size']}"] if "batch_size" in settings else []
    parts += [f"device {device['driver']}"] if "driver" in device else []
    if device.get("clock") == "stepped":
        parts.append("stepped clock")
    elif "rate_tau_per_s" in device:
        parts.append(f"{device['rate_tau_per_s']:,g} τ a second")
    errors = sorted(agreed.error for agreed in record.of(ClockAgreed) if agreed.rate)
    parts += [f"device times within {1e3 * errors[len(errors) // 2]:.2g} ms of host times"] if errors else []
    return ", ".join(parts)
