"""A device that is fed in the background: a step hands a program over, and takes readings that are fresh enough."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from host_client.frames import release_frames
from host_client.loop.arrivals import Arrivals, Arrived, closed_error
from host_client.loop.background import Background
from host_client.loop.periodic import OUTSTANDING, multiples, read_each
from host_client.loop.policies import Freshness, OnLoss
from host_client.loop.recovery import LOST, Recovery
from host_client.loop.schedule import Schedule
from host_client.loop.uploads import HandOver, Uploads
from host_client.record.events import Event
from spu_link.errors import SpuError
from spu_link.operators import Operator
from spu_link.precision import Precision
from spu_link.program import StartPolicy

if TYPE_CHECKING:
    from host_client.aio import Session, Upload


@dataclass(frozen=True)
class _Ahead:
    """An operator that is sent before the rest of its program is known."""

    operator: weakref.ref[Operator]
    precision: Precision | None
    upload: Upload
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
        record = record or (lambda event: None)
        self._session = session
        self._numbers = count(1)
        self._ahead: _Ahead | None = None
        self._copying: Upload | None = None
        self._closed = False
        self._periodic = False  # whether periodic readings are under way
        self._background = Background(self._failed)
        self._recovery = Recovery(session, on_loss, self.counts, record)
        self._arrivals = Arrivals(session, self._recovery, self.counts, record)
        self._uploads = Uploads(session, self._arrivals, self._background, self._took_hold, self.counts, record)

    @property
    def newest(self) -> Arrived | None:
        """The newest reading; None before the first."""
        return self._arrivals.newest

    @property
    def lost(self) -> SpuError | None:
        """Why there is no device now; None while there is."""
        return self._recovery.lost

    @property
    def free_from(self) -> float | None:
        """Device time at which the last program has run its schedule, in τ; None before the first."""
        return self._uploads.free_from

    def resume(self, free_from: float, operator: Operator | None, sequence: int) -> None:
        """The device's state has been restored: the cells are ours.

        Args:
            free_from: device time at which its program has run its schedule, in τ.
            operator: that of the program, if it may be kept.
            sequence: number of the program.
        """
        self._uploads.take_up(free_from, operator, sequence)

    def begin(self, operator: Operator, precision: Precision | None, *, copied: bool) -> None:
        """Send an operator ahead of the rest, if nothing else is under way; `hand_over` of the same object goes on.

        Args:
            operator: F. Its tensors must stay as they are until the program has taken hold; if `copied`, until `copied`
                returns after the hand-over.
            precision: how it travels.
            copied: whether to send a copy of it.
        """
        self.abandon()
        if self._uploads.idle and self.lost is None and not self._is_closed:
            sent = operator.map(torch.clone) if copied and not self._session.copies_at_once else operator
            began = time.monotonic()
            upload = self._session.upload(sent, precision=precision)
            self._ahead = _Ahead(weakref.ref(operator), precision, upload, began)

    def abandon(self) -> None:
        """No hand-over will follow for what has been sent ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._uploads.let_go(ahead.upload)

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
            SessionClosed: after `close`, or when the session has been closed.
            SpuError: why the device is lost.
        """
        began, upload, ahead = time.monotonic(), None, self._ahead
        if ahead is not None and ahead.operator() is operator and ahead.precision == precision:
            began, upload, self._ahead = ahead.began, ahead.upload, None
        self.abandon()
        self._check_open()
        self._recovery.check()
        self._copying = upload if copied and self._session.copies_at_once else None  # else `begin` has copied it
        one = HandOver(
            number=next(self._numbers),
            given=weakref.ref(operator),
            operator=operator.map(torch.clone) if copied and upload is None else operator,
            drive=drive,
            damping=damping,
            noise=noise,
            start=start,
            resume=resume,
            schedule=schedule,
            precision=precision,
            keep=keep,
            ahead=upload,
            began=began,
        )
        self._uploads.send(one)
        return one.number

    async def exchange(
        self,
        operator: Operator,
        drive: Tensor,
        /,
        *,
        freshness: Freshness,
        timeout: float,
        together: bool = False,
        **options: Any,
    ) -> list[Arrived]:
        """Send a program, and take the readings for a step, waiting `timeout` seconds in all.

        Args:
            operator, drive, options: as of `hand_over`.
            freshness, together: as of `readings`.
            timeout: longest wait, in seconds.

        Raises:
            TooStale, SpuError: as of `readings`.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        number = self.hand_over(operator, drive, **options)
        await self.copied(timeout)
        return await self._arrivals.take(number, freshness, deadline=deadline, timeout=timeout, together=together)

    async def copied(self, timeout: float | None = None) -> None:
        """Wait until the last hand-over has its copy of the operator, if it was to have one.

        Args:
            timeout: longest wait, in seconds. Where it ends earlier, the operator must stay as it is.
        """
        if self._copying is not None:
            copying, self._copying = self._copying, None
            await copying.begun(timeout)

    async def readings(
        self, number: int, freshness: Freshness, *, timeout: float, together: bool = False
    ) -> list[Arrived]:
        """Readings for a step: what has come since the last call; or the newest again, if it is fresh enough.

        Args:
            number: of the step's hand-over.
            freshness: which readings will do.
            timeout: longest wait, in seconds.
            together: whether the readings scheduled with a program count only when all of them have come; then they are
                those of the newest such program, also if they have been taken before.

        Raises:
            TooStale: when none came in time that will do.
            SpuError: why the device is lost, or has refused a program.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        return await self._arrivals.take(number, freshness, deadline=deadline, timeout=timeout, together=together)

    async def back(self, timeout: float) -> None:
        """Wait until the device is there again.

        Raises:
            SpuError: why it is lost, when it is not back in time or nobody tries to get it back.
        """
        self._check_open()
        await self._recovery.back(timeout)

    async def close(self) -> None:
        """Break off whatever is under way; whoever waits for a reading gets `SessionClosed`."""
        self._closed = True
        self._arrivals.close()
        await self._recovery.close()
        self.abandon()
        self._uploads.abandon()
        self._background.cancel()
        await self._background.over()
        await self._uploads.over()

    @property
    def _is_closed(self) -> bool:
        return self._closed or self._session.closed

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error(self._session)

    def _took_hold(self, one: HandOver) -> None:
        period = one.schedule.period
        if period is not None and self._session.spu.clock == "free" and not self._periodic:
            self._periodic = True
            times = multiples(self._session, period)
            for _ in range(OUTSTANDING):
                self._background.start(read_each(self._session, times, self._arrivals, self.counts))

    def _failed(self, error: Exception) -> None:
        release_frames(error)
        if self._closed:
            return
        if isinstance(error, LOST):
            self._lose(error)
        else:
            self._arrivals.refuse(error)

    def _lose(self, error: SpuError) -> None:
        """The device is gone: nothing under way will end."""
        if self.lost is not None:
            return
        self._uploads.forget()
        self.abandon()
        self._arrivals.forget()
        self._background.cancel()
        self._periodic = False
        self._recovery.lose(error)
        if self.lost is None:
            self._arrivals.refuse(error)
