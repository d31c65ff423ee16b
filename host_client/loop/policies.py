"""Policies of a step: the freshness that a reading must have, and what to do without a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from host_client.names import OnLoss as OnLoss
from spu_link.errors import Retryable


@dataclass(frozen=True)
class NoOlderThan:
    """A reading that meets every limit given; a step waits for one.

    Attributes:
        programs: how many programs may have been submitted since that of the reading: 0 is this step's own.
        tau: device time since the reading, in τ.
        milliseconds: the same in wall time.

    Raises:
        ValueError: when no limit is given, or a negative one.
    """

    programs: int | None = None
    tau: float | None = None
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        limits = {"programs": self.programs, "tau": self.tau, "milliseconds": self.milliseconds}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if not given:
            raise ValueError(f"NoOlderThan needs a limit: {', '.join(limits)}")
        for name, limit in given.items():
            if not limit >= 0:
                raise ValueError(f"Invalid {name}: {limit}; it must be at least 0")


Freshness: TypeAlias = Literal["program", "newest"] | NoOlderThan
"""Which readings a step may use: those of its own program; the newest there is, at once; or what is fresh enough."""


class TooStale(Retryable):
    """No reading came that was fresh enough in the time that a step may wait."""

    remedy: ClassVar[str] = (
        "allow older readings with `freshness`, a larger `timeout`, or choose with `on_loss` what a step does then"
    )

    code = "DEADLINE_EXCEEDED"
