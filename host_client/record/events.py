"""Events of a run. Host times are seconds of ``time.monotonic()``, device times are in τ of the epoch named.

An epoch is one life of the device's clock: it changes when the daemon restarts, and device times of two epochs do not
compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["took effect", "dropped", "abandoned", "failed"]
"""Outcome of an upload: its program took effect; a newer one replaced it before it was sent; it was cancelled because
nobody wanted it any more; or the device or the link failed."""

Source: TypeAlias = Literal["device", "digital", "gradient"]
"""Source of an update's direction: a reading, the digital solve, or the plain gradient."""


@dataclass(frozen=True, slots=True)
class ClockAgreed:
    """Host and device compared their clocks.

    Attributes:
        host: instant on the host.
        device: device time at that instant.
        epoch: of the device time.
        rate: τ per second of host time; 0 on a stepped clock, where host time says nothing about device time.
        error: bound on the error of `host`, in seconds.
    """

    host: float
    device: float
    epoch: int
    rate: float
    error: float


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A program's way to the device, recorded when it is over.

    Attributes:
        number: of the upload in this run.
        began: when the host submitted it, or began to send it ahead; its first bytes may have had to wait.
        ended: when the client knew the outcome.
        outcome: see `Outcome`.
        epoch: of the device time; None unless it took effect.
        sequence: number of the program at the device; None unless it took effect.
        took_effect: device time at which it did; None unless it did.
        nbytes: bytes of tensors.
        path: which way they went, such as ``"shared-memory"``, ``"grpc"`` or ``"in-process"``; None if none did.
        kept: whether the device kept the operator that it had, so that the drive travelled alone.
        step: number of the step whose gradient it carries; None if that is not known.
    """

    number: int
    began: float
    ended: float
    outcome: Outcome
    epoch: int | None
    sequence: int | None
    took_effect: float | None
    nbytes: int
    path: str | None
    kept: bool
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """A reading arrived.

    Attributes:
        number: of the reading in this run.
        epoch: of the device times.
        sequence: number of the program that was in force.
        asked: device time asked for; None: at once.
        time: device time of the measurement.
        age: how long the program had run by then, in τ.
        window: length of the average, in τ; 0 for the state itself.
        sent: device time at which the device sent it.
        received: host time at which it had arrived.
    """

    number: int
    epoch: int
    sequence: int
    asked: float | None
    time: float
    age: float
    window: float
    sent: float
    received: float


@dataclass(frozen=True, slots=True)
class Differentiated:
    """The host made the gradient and the curvature of a batch.

    Attributes:
        step: number of the step that they are for, from 1.
        began: host time at which it began.
        ended: host time at which gradient and curvature were there.
    """

    step: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Updated:
    """The parameters changed.

    Attributes:
        step: number of the step that it belongs to, from 1. A step may update several times.
        began: host time at which the direction was there and the update began.
        ended: host time at which the parameters were the new ones.
        readings: numbers of the readings used: several if along their average, none without a device.
        staleness: device time from the first measurement to its use, in τ; None without a reading.
        source: where the direction came from.
    """

    step: int
    began: float
    ended: float
    readings: tuple[int, ...]
    staleness: float | None
    source: Source

    def __post_init__(self) -> None:
        """JSON has no tuples."""
        object.__setattr__(self, "readings", tuple(self.readings))


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """The device was lost, faulted, preempted or too stale.

    Attributes:
        host: when the host knew.
        reason: for people.
        policy: what is done about it.
    """

    host: float
    reason: str
    policy: str


@dataclass(frozen=True, slots=True)
class DeviceBack:
    """The device has recovered.

    Attributes:
        host: when the host knew.
        epoch: of the device's clock from now on.
    """

    host: float
    epoch: int


Event: TypeAlias = ClockAgreed | Uploaded | Read | Differentiated | Updated | DeviceLost | DeviceBack
"""Anything that a record holds."""
