"""A device that is fed in the background: one upload in flight, one waiting, readings as they come."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from host_client.aio import Upload
from host_client.loop.policies import Freshness, NoOlderThan, OnLoss, TooStale
from host_client.loop.recovery import LOST, Recovery
from host_client.loop.schedule import Schedule
from host_client.record.clocks import ClockNotes
from host_client.record.events import Event, Read, Uploaded
from spu_link.errors import OperatorGone, ReadInPast, SpuError, UploadCorrupt
from spu_link.operators import Kept, Operator
from spu_link.precision import Precision
from spu_link.program import Applied, Reading, StartPolicy

if TYPE_CHECKING:
    from host_client.aio import Session

KEPT_READINGS = 64
"""Most readings that wait for a step; older ones are forgotten."""

KNOWN_PROGRAMS = 256
"""Most programs whose readings are told apart."""

OUTSTANDING = 4
"""Most periodic readings asked for ahead."""

MARGIN_SECONDS = 1e-3
"""How far ahead a periodic reading is asked for at least, beyond the error of the clock."""


@dataclass(frozen=True)
class Arrived:
    """A reading that has come.

    Attributes:
        number: its number in the record, from 1.
        program: number of the hand-over under whose program it was taken.
        reading: the reading.
    """

    number: int
    program: int
    reading: Reading


@dataclass(eq=False)
class _HandOver:
    number: int
    given: weakref.ref[Operator]
    operator: Operator
    keep: bool
    drive: Tensor
    damping: float
    noise: float
    start: StartPolicy
    resume: Tensor | None
    schedule: Schedule
    precision: Precision | None
    ahead: Upload | None
    began: float


class Feed:
    """Programs to one device in the background, and its readings back. Made by `Session.feed`; used on its event loop.

    One upload is in flight at a time, until its program has taken hold, and at most one waits for it; a newer one takes
    the place of one that waits, which is dropped. A program takes hold when the one before it has run its schedule. The
    device keeps the last operator it was sent: a hand-over of the same object sends the drive alone.

    On a stepped clock the feed moves the time, and a step waits until its program has run its schedule, so that the
    same steps give the same bits.

    Args:
        session: the device.
        on_loss: unless ``"raise"``, a new session is opened, again and again, when this one is lost.
        record: told what happens.
        counts: where it counts.

    Attributes:
        counts: what happened how often: ``"uploads"``, ``"kept"`` (those without an operator), ``"dropped"``,
            ``"readings"``, ``"missed"`` (periodic readings whose time had passed), ``"lost"``, ``"reconnected"``.
        newest: the newest reading; None before the first.
    """

    def __init__(
        self,
        session: Session,
        *,
        on_loss: OnLoss = "raise",
        record: Callable[[Event], None] | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        self.counts = Counter() if counts is None else counts
        self.newest: Arrived | None = None
        self._session = session
        self._record = record or (lambda event: None)
        self._clocks = ClockNotes(self._record)
        self._recovery = Recovery(session, on_loss, self.counts, self._record)
        self._numbers, self._read_numbers = count(1), count(1)
        self._in_flight: _HandOver | None = None
        self._waiting: _HandOver | None = None
        self._ahead: tuple[weakref.ref[Operator], Precision | None, Upload, float] | None = None
        self._copying: Upload | None = None
        self._finished = 0  # number of the newest hand-over whose readings have all come, or never will
        self._refused: Exception | None = None
        self._arrived: deque[Arrived] = deque(maxlen=KEPT_READINGS)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Nothing is known of what the device holds."""
        self._holds_ours = False
        self._held: tuple[weakref.ref[Operator], int] | None = None
        self._programs: OrderedDict[int, int] = OrderedDict()  # number of the hand-over by the program's sequence
        self._free_from: float | None = None
        self._periodic = False

    @property
    def lost(self) -> SpuError | None:
        """Why there is no device now; None while there is."""
        return self._recovery.lost

    @property
    def free_from(self) -> float | None:
        """Device time at which the last program has run its schedule, in τ; None before the first."""
        return self._free_from

    def resume(self, free_from: float, operator: Operator | None, sequence: int) -> None:
        """The device's state has been restored: the cells are ours.

        Args:
            free_from: device time at which its program has run its schedule, in τ.
            operator: that of the program, if it may be kept.
            sequence: number of the program.
        """
        self._begin_anew()
        self._holds_ours, self._free_from = True, free_from
        self._held = None if operator is None else (weakref.ref(operator), sequence)

    def begin(self, operator: Operator, precision: Precision | None, *, copied: bool) -> None:
        """Send an operator ahead of the rest, if nothing else is under way; `hand_over` of the same object goes on.

        Args:
            operator: F. Its tensors must stay as they are until the program has taken hold; if `copied`, until `copied`
                returns after the hand-over.
            precision: how it travels.
            copied: whether to send a copy of it.
        """
        self.abandon()
        if self._in_flight is None and self.lost is None:
            sent = operator.map(torch.clone) if copied and not self._session.copies_at_once else operator
            began = time.monotonic()
            self._ahead = weakref.ref(operator), precision, self._session.upload(sent, precision=precision), began

    def abandon(self) -> None:
        """No hand-over will follow for what has been sent ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._let_go(ahead[2])

    def hand_over(
        self,
        operator: Operator,
        drive: Tensor,
        *,
        damping: float,
        schedule: Schedule,
        noise: float = 0.0,
        start: StartPolicy = "keep",
        resume: Tensor | None = None,
        precision: Precision | None = None,
        keep: bool = False,
        copied: bool = False,
    ) -> int:
        """Take a program, to be uploaded in the background; its number, from 1.

        Args:
            operator: F. Its tensors must stay as they are until the program has taken hold; if `copied`, until `copied`
                returns.
            drive: b, shape (N,); it must stay as it is.
            damping, noise, start, precision: as of `Session.program`.
            schedule: when it is read.
            resume: where the cells start in place of ``"keep"`` while they do not hold ours; None: at the drive.
            keep: whether this is, unchanged, the operator of the last hand-over, so that the device may keep it.
            copied: whether to send a copy of the operator.

        Raises:
            SpuError: why the device is lost.
        """
        upload, began = None, time.monotonic()
        if self._ahead is not None and self._ahead[0]() is operator and self._ahead[1] == precision:
            (_, _, upload, began), self._ahead = self._ahead, None
        self.abandon()
        if self.lost is not None:
            raise self.lost
        given = weakref.ref(operator)
        self._copying = upload if copied else None
        if upload is None and copied:
            operator = operator.map(torch.clone)
        one = _HandOver(
            next(self._numbers),
            given,
            operator,
            keep,
            drive,
            damping,
            noise,
            start,
            resume,
            schedule,
            precision,
            upload,
            began,
        )
        if self._in_flight is None:
            self._send(one)
        else:
            if self._waiting is not None:
                self._end(self._waiting, "dropped")
            self._waiting = one
        return one.number

    async def copied(self) -> None:
        """Wait until the last hand-over has its copy of the operator, if it was to have one."""
        if self._copying is not None:
            copying, self._copying = self._copying, None
            await copying.begun()

    async def readings(self, number: int, freshness: Freshness, *, timeout: float) -> list[Arrived]:
        """Readings for a step: what has come since the last call; or the newest again, if it is fresh enough.

        Args:
            number: of the step's hand-over.
            freshness: which readings will do.
            timeout: longest wait, in seconds.

        Raises:
            TooStale: when none came in time that will do.
            SpuError: why the device is lost, or has refused a program.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            self._changed.clear()
            if self.lost is not None:
                raise self.lost
            if self._refused is not None:
                refused, self._refused = self._refused, None
                raise refused
            if self._fresh(number, freshness):
                break
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                raise TooStale(
                    f"no reading came within {timeout:g} s that is fresh enough for a step ({freshness})",
                    field="freshness",
                    found="none at all"
                    if self.newest is None
                    else f"one of program {self.newest.program}, now {number}",
                    expected=str(freshness),
                ) from None
        assert self.newest is not None
        taken = [one for one in self._arrived if freshness != "this program" or one.program >= number]
        self._arrived.clear()
        return taken or [self.newest]

    async def back(self, timeout: float) -> None:
        """Wait until the device is there again.

        Raises:
            SpuError: why it is lost, when it is not back in time or nobody tries to get it back.
        """
        await self._recovery.back(timeout)

    async def close(self) -> None:
        """Break off whatever is under way."""
        await self._recovery.close()
        self.abandon()
        for one in (self._in_flight, self._waiting):
            if one is not None:
                self._end(one, "abandoned")
        self._in_flight = self._waiting = None
        await asyncio.gather(*self._cancel_others(), *self._leaving, return_exceptions=True)
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def _fresh(self, number: int, freshness: Freshness) -> bool:
        newest, clock = self.newest, self._session.clock
        if newest is None or (self._session.spu.clock == "stepped" and self._finished < number):
            return False
        if freshness == "this program":
            return newest.program >= number and (self._finished >= number or self._periodic)
        if freshness == "newest":
            return True
        assert isinstance(freshness, NoOlderThan)
        age = clock.device_time() - newest.reading.time
        return (
            (freshness.programs is None or newest.program >= number - freshness.programs)
            and (freshness.tau is None or age <= freshness.tau)
            and (freshness.milliseconds is None or age <= clock.rate * 1e-3 * freshness.milliseconds)
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._refused = error  # told to the next step
            self._changed.set()

    def _let_go(self, upload: Upload) -> None:
        """Abandon an upload that was sent ahead, unless it is over."""
        task = asyncio.get_running_loop().create_task(upload.abandon())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _send(self, one: _HandOver) -> None:
        self._in_flight = one
        self._start(self._upload(one))

    async def _upload(self, one: _HandOver) -> None:
        try:
            try:
                await self._program(one)
            except (OperatorGone, UploadCorrupt):
                self._held, one.ahead = None, None
                await self._program(one)  # once more, with everything
        except LOST as error:
            self._lose(error)
        except SpuError as error:
            if self._in_flight is one:
                self._end(one, "failed")
            self._refused = error
            self._go_on(one)
        finally:
            if one.ahead is not None:
                self._let_go(one.ahead)

    async def _program(self, one: _HandOver) -> None:
        session, schedule = self._session, one.schedule
        kept = False
        if one.keep and self._held is not None and Kept.kind in session.spu.features:
            kept = self._held[0]() is one.given()
        if kept:
            assert self._held is not None
            upload = Upload(session, Kept(self._held[1], one.operator.parameters), None)
        else:
            upload = one.ahead or Upload(session, one.operator, one.precision)
        not_before = None if self._free_from is None else self._free_from + schedule.delay
        if session.spu.clock == "stepped":
            plans = schedule.plans_from(max(session.device_time, not_before or 0.0))
        else:
            plans = schedule.plans()
        start: StartPolicy | Tensor = one.start
        if start == "keep" and not self._holds_ours:
            start = "drive" if one.resume is None else one.resume
        async with aclosing(
            upload.stream(
                one.drive,
                plans,
                damping=one.damping,
                noise=one.noise,
                start=start,
                not_before=not_before,
                length=schedule.length,
            )
        ) as events:
            async for event in events:
                if isinstance(event, Applied):
                    self._took_hold(one, event, upload, kept)
                else:
                    self._came(event, event.time)
        self._finished = max(self._finished, one.number)
        self._changed.set()

    def _took_hold(self, one: _HandOver, applied: Applied, upload: Upload, kept: bool) -> None:
        self._holds_ours = True
        self._held = one.given, applied.sequence
        self._free_from = applied.time + one.schedule.length
        self._programs[applied.sequence] = one.number
        while len(self._programs) > KNOWN_PROGRAMS:
            self._programs.popitem(last=False)
        self.counts["uploads"] += 1
        self.counts["kept"] += kept
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
        if one.schedule.period is not None and self._session.spu.clock == "free" and not self._periodic:
            self._periodic = True
            self._start(self._read_periodically(one.schedule.period))
        self._go_on(one)

    def _go_on(self, one: _HandOver) -> None:
        """Send the next one, unless that has been done."""
        if self._in_flight is one:
            self._in_flight = None
            if self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                self._send(waiting)
        self._changed.set()

    def _end(self, one: _HandOver, outcome: Literal["dropped", "abandoned", "failed"]) -> None:
        """A program that has not taken hold, and never will."""
        if outcome == "dropped":
            self.counts["dropped"] += 1
        if one.ahead is not None:
            self._let_go(one.ahead)
        self._record(Uploaded(one.number, one.began, time.monotonic(), outcome, None, None, None, 0, None, False))

    def _came(self, reading: Reading, asked: float | None) -> None:
        received = time.monotonic()
        arrived = Arrived(next(self._read_numbers), self._programs.get(reading.sequence, 0), reading)
        self.counts["readings"] += 1
        self._record(
            Read(
                arrived.number,
                reading.epoch,
                reading.sequence,
                asked,
                reading.time,
                reading.age,
                reading.window,
                reading.sent,
                received,
            )
        )
        self._arrived.append(arrived)
        if self.newest is None or arrived.program >= self.newest.program:
            self.newest = arrived
        self._changed.set()

    async def _read_periodically(self, period: float) -> None:
        room = asyncio.Semaphore(OUTSTANDING)

        async def read(at: float) -> None:
            try:
                self._came(await self._session.read(at), at)
            except ReadInPast:
                self.counts["missed"] += 1
            except LOST as error:
                self._lose(error)
            finally:
                room.release()

        k = 0
        while True:
            await room.acquire()
            clock = self._session.clock
            soonest = clock.device_time() + clock.rate * (clock.error + MARGIN_SECONDS)
            k = max(k + 1, math.ceil(soonest / period))
            self._start(read(k * period))

    def _lose(self, error: SpuError) -> None:
        """The device is gone: nothing under way will end."""
        if self.lost is not None:
            return
        if self._in_flight is not None:
            self._end(self._in_flight, "failed")
        if self._waiting is not None:
            self._end(self._waiting, "dropped")
        self.abandon()
        self._in_flight = self._waiting = self.newest = None
        self._arrived.clear()
        self._begin_anew()
        self._cancel_others()
        self._recovery.lose(error)
        if self.lost is None:
            self._refused = error
        self._changed.set()

    def _cancel_others(self) -> list[asyncio.Task[None]]:
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        return others
