"""Programs on their way to a device, one after the other."""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from host_client.aio import Upload
from host_client.loop.arrivals import Arrivals
from host_client.loop.background import Background
from host_client.loop.recovery import LOST
from host_client.loop.schedule import Schedule
from host_client.record.clocks import ClockNotes
from host_client.record.events import Event, Uploaded
from spu_link.errors import OperatorGone, SpuError, UploadCorrupt
from spu_link.operators import Kept, Operator
from spu_link.precision import Precision
from spu_link.program import Applied, StartPolicy

if TYPE_CHECKING:
    from host_client.aio import Session


@dataclass(eq=False)
class HandOver:
    """A program as a step hands it over; see `Feed.hand_over`.

    Attributes:
        number: from 1.
        given: the operator that was given, to know it again.
        operator: what is sent of it: the same, or a copy.
        ahead: the upload that has begun to send it; None where there is none.
        began: host time at which the first of it was there.
    """

    number: int
    given: weakref.ref[Operator]
    operator: Operator
    drive: Tensor
    damping: float
    noise: float
    start: StartPolicy
    resume: Tensor | None
    schedule: Schedule
    precision: Precision | None
    keep: bool
    ahead: Upload | None
    began: float


class Uploads:
    """One upload in flight, until its program has taken hold, and at most one that waits for it.

    Args:
        session: the device.
        arrivals: told of readings, and of programs that the device refuses.
        background: where uploads run; it is told when the device is lost.
        took_hold: told of each program that has.
        counts: counts ``"uploads"``, ``"kept"`` and ``"dropped"``.
        record: told what becomes of each.

    Attributes:
        free_from: device time at which the last program has run its schedule, in τ; None before the first.
    """

    def __init__(
        self,
        session: Session,
        arrivals: Arrivals,
        background: Background,
        took_hold: Callable[[HandOver], None],
        counts: Counter[str],
        record: Callable[[Event], None],
    ) -> None:
        self.free_from: float | None = None
        self._session, self._arrivals, self._background = session, arrivals, background
        self._took_hold, self._counts, self._record = took_hold, counts, record
        self._clocks = ClockNotes(record)
        self._leaving = Background(arrivals.refuse)
        self._in_flight: HandOver | None = None
        self._waiting: HandOver | None = None
        self._holds_ours = False  # whether the cells are where a program of ours left them
        self._held: tuple[weakref.ref[Operator], int] | None = None  # operator and sequence of the last program

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return self._in_flight is None

    def send(self, one: HandOver) -> None:
        """Upload a program, at once or when the one in flight has taken hold, in place of one that waits for that."""
        if self._in_flight is None:
            self._in_flight = one
            self._background.start(self._upload(one))
        else:
            if self._waiting is not None:
                self._end(self._waiting, "dropped")
            self._waiting = one

    def let_go(self, upload: Upload) -> None:
        """Abandon an upload that was sent ahead, unless it is over."""
        self._leaving.start(upload.abandon())

    def take_up(self, free_from: float, operator: Operator | None, sequence: int) -> None:
        """The device goes on under a program of an earlier run; arguments as of `Feed.resume`."""
        self._holds_ours, self.free_from = True, free_from
        self._held = None if operator is None else (weakref.ref(operator), sequence)

    def forget(self) -> None:
        """The device is gone: nothing under way will end, and nothing is known of what it holds."""
        self._break_off("failed", "dropped")
        self._holds_ours, self._held, self.free_from = False, None, None

    def abandon(self) -> None:
        """Nobody wants what is under way any more."""
        self._break_off("abandoned", "abandoned")

    async def over(self) -> None:
        """Wait until nothing is left of what was let go."""
        await self._leaving.over()

    def _break_off(self, in_flight: Literal["abandoned", "failed"], waiting: Literal["abandoned", "dropped"]) -> None:
        if self._in_flight is not None:
            self._end(self._in_flight, in_flight)
        if self._waiting is not None:
            self._end(self._waiting, waiting)
        self._in_flight = self._waiting = None

    async def _upload(self, one: HandOver) -> None:
        try:
            try:
                await self._program(one)
            except (OperatorGone, UploadCorrupt):
                self._held, one.ahead = None, None
                await self._program(one)  # once more, with everything
        except LOST:
            raise
        except SpuError as error:
            if self._in_flight is one:
                self._end(one, "failed")
            self._arrivals.refuse(error)
            self._go_on(one)
        finally:
            if one.ahead is not None:
                self.let_go(one.ahead)

    async def _program(self, one: HandOver) -> None:
        session, schedule = self._session, one.schedule
        if (kept := self._kept(one)) is not None:
            upload = session._upload(kept, None)
        else:
            upload = one.ahead or session._upload(one.operator, one.precision)
        # That of a restored program may lie before the device's time began.
        not_before = None if self.free_from is None else max(0.0, self.free_from + schedule.delay)
        if session.spu.clock == "stepped":
            plans = schedule.plans_from(max(session.device_time, not_before or 0.0))
        else:
            plans = schedule.plans()
        start: StartPolicy | Tensor = one.start
        if start == "keep" and not self._holds_ours:
            start = "drive" if one.resume is None else one.resume
        events = upload.stream(
            one.drive,
            plans,
            damping=one.damping,
            noise=one.noise,
            start=start,
            not_before=not_before,
            length=schedule.length,
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Applied):
                    self._has_taken_hold(one, event, upload)
                else:
                    self._arrivals.add(event, event.time)
        self._arrivals.finish(one.number)

    def _kept(self, one: HandOver) -> Kept | None:
        """What travels in place of an operator that the device has kept."""
        if not one.keep or self._held is None or not self._session.keeps:
            return None
        given, sequence = self._held
        return Kept(sequence, one.operator.parameters) if given() is one.given() else None

    def _has_taken_hold(self, one: HandOver, applied: Applied, upload: Upload) -> None:
        kept = isinstance(upload.operator, Kept)
        self._holds_ours = True
        self._held = one.given, applied.sequence
        self.free_from = applied.time + one.schedule.length
        self._arrivals.expect(applied, one.number)
        self._counts["uploads"] += 1
        self._counts["kept"] += kept
        self._clocks.note(self._session.clock)
        self._record(
            Uploaded(
                one.number,
                one.began,
                time.monotonic(),
                "took hold",
                applied.epoch,
                applied.sequence,
                applied.time,
                upload.sent_bytes,
                upload.path,
                kept,
            )
        )
        self._took_hold(one)
        self._go_on(one)

    def _go_on(self, one: HandOver) -> None:
        """Send the next one, unless that has been done."""
        if self._in_flight is one:
            self._in_flight = None
            if self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                self.send(waiting)

    def _end(self, one: HandOver, outcome: Literal["dropped", "abandoned", "failed"]) -> None:
        """A program that has not taken hold, and never will."""
        if outcome == "dropped":
            self._counts["dropped"] += 1
        if one.ahead is not None:
            self.let_go(one.ahead)
        self._record(Uploaded(one.number, one.began, time.monotonic(), outcome, None, None, None, 0, None, False))
