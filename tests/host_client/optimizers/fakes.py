"""A device that is only a notebook."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from host_client.links.base import Capacity
from spu_link.errors import DeviceUnavailable
from spu_link.operators import Operator
from spu_link.program import Reading


@dataclass
class Recorder:
    """Answers each solve with its drive, after writing down what was asked.

    Attributes:
        asked: options of each solve.
        capacity: what it can hold.
        fails: whether the next one fails.
        time: device time, in τ.
    """

    asked: list[dict[str, Any]] = field(default_factory=list)
    capacity: Capacity = field(default=Capacity(1 << 33, 200_000_000, False))
    fails: bool = False
    time: float = 0.0

    def solve(self, operator: Operator, drive: Tensor, *, analog_time: float, **options: Any) -> Reading:
        """The drive."""
        if self.fails:
            raise DeviceUnavailable("the daemon is gone")
        self.asked.append({"analog_time": analog_time, **options})
        self.time = max(self.time, options["not_before"] or 0.0) + analog_time
        return Reading(drive.clone(), self.time, len(self.asked), analog_time, 0.0, self.time)
