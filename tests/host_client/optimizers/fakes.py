"""A device that is only a notebook."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from host_client.capacity import Capacity
from host_client.loop import Sampling
from host_client.loop.arrivals import Arrived
from spu_link.errors import DeviceUnavailable
from spu_link.operators import Operator
from spu_link.program import Program, Reading


@dataclass
class Recorder:
    """A session whose feed answers each exchange with its drive, after writing down what was asked.

    Attributes:
        asked: arguments of each exchange.
        begun: operators that were sent ahead.
        capacity: what it can hold.
        fails: whether the next exchange fails.
        time: device time, in τ.
    """

    asked: list[dict[str, Any]] = field(default_factory=list)
    begun: list[Operator] = field(default_factory=list)
    capacity: Capacity = field(default=Capacity(1 << 33, 200_000_000, False))
    fails: bool = False
    time: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    lost: None = None
    embedding: None = None
    free_from: None = None
    spu: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(features=(), rate=0.0))

    @property
    def clock(self) -> SimpleNamespace:
        """A clock that stands still."""
        return SimpleNamespace(device_time=lambda: self.time)

    def feed(self, **options: Any) -> Recorder:
        """Itself."""
        return self

    def begin(self, operator: Operator, precision: object, *, copied: bool) -> None:
        """Note it."""
        self.begun.append(operator)

    def abandon(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is open."""

    def exchange(self, program: Program, sampling: Sampling, **options: Any) -> list[Arrived]:
        """The drive."""
        if self.fails:
            raise DeviceUnavailable("the daemon is gone")
        self.asked.append({"program": program, "sampling": sampling, **options})
        self.time += sampling.delay + sampling.analog_time
        reading = Reading(program.drive.clone(), self.time, len(self.asked), sampling.analog_time, 0.0, self.time)
        return [Arrived(len(self.asked), len(self.asked), reading)]
