"""The feed of a device: a step submits a program, and takes readings that are fresh enough for it."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from host_client.frames import release_frames
from host_client.loop.arrivals import Arrivals, Arrived, closed_error
from host_client.loop.policies import Freshness, OnLoss
from host_client.loop.recovery import LOST, Recovery
from host_client.loop.sampling import OUTSTANDING, Sampling, multiples, read_each
from host_client.loop.uploads import Background, Submission, Uploads
from host_client.record.events import Event
from spu_link.errors import SpuError
from spu_link.operators import Operator
from spu_link.precision import Precision
from spu_link.program import Program

if TYPE_CHECKING:
    from host_client.aio import Session, Upload


@dataclass(frozen=True)
class _Ahead:
    """An operator that is sent before the rest of its program is known.

    Attributes:
        operator: the object that `begin` was given, to know it again.
        began: host time of that call.
    """

    operator: weakref.ref[Operator]
    precision: Precision | None
    upload: Upload
    began: float


class Feed:
    """Programs to one device in the background, and its readings back, on the event loop of its session.

    It is closed with the session.

    One upload is in flight at a time, until its program has taken effect, and at most one waits for it; a newer one
    replaces one that waits, which is dropped. A program takes effect when the one before it has run its schedule. The
    device keeps the last operator it was sent: submitting the same object again sends the drive alone.

    On a stepped clock the feed moves the time, and a step waits until its program has run its schedule, so that the
    same steps give the same bits.

    Args:
        session: the device.
        on_loss: unless ``"raise"``, a new session is opened, again and again, when this one is lost.
        record: called with each event.
        counts: counter to share with the caller, such as an optimizer; None for a new one.

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
        session.attach(self)
        self.counts = Counter() if counts is None else counts
        record = record or (lambda event: None)
        self._session = session
        self._numbers = count(1)
        self._ahead: _Ahead | None = None
        self._copying: Upload | None = None
        self._closed = False
        self._periodic = False  # whether periodic readings are under way
        self._background = Background(self._handle_error)
        self._recovery = Recovery(session, on_loss, self.counts, record)
        self._arrivals = Arrivals(session, self._recovery, self.counts, record)
        self._uploads = Uploads(session, self._arrivals, self._background, self._start_periodic, self.counts, record)

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

    async def resume(self, free_from: float, operator: Operator | None, sequence: int) -> None:
        """Go on from a state of the device that has been restored: the cells are ours.

        Args:
            free_from: device time at which its program has run its schedule, in τ.
            operator: that of the program, if it may be kept.
            sequence: number of the program.
        """
        self._uploads.resume(free_from, operator, sequence)

    def begin(self, operator: Operator, precision: Precision | None, *, copied: bool) -> None:
        """Send an operator ahead of the rest, if nothing else is under way; `submit` of the same object goes on.

        Args:
            operator: F. Its tensors must stay as they are until the program has taken effect; if `copied`, until
                `copied` returns after it has been submitted.
            precision: how it travels.
            copied: whether to send a copy of it.
        """
        self.abandon()
        if self._uploads.idle and self.lost is None and not self._is_closed:
            sent = operator.map(torch.clone) if copied and not self._session.lease.copies_at_once else operator
            began = time.monotonic()
            upload = self._session.lease.upload(sent, precision, known_as=weakref.ref(operator))
            upload.begin()
            self._ahead = _Ahead(weakref.ref(operator), precision, upload, began)

    def abandon(self) -> None:
        """Abandon what has been sent ahead: no program will follow for it."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._uploads.release(ahead.upload)

    def submit(
        self,
        program: Program,
        sampling: Sampling,
        *,
        resume: Tensor | None = None,
        unchanged: bool = False,
        copied: bool = False,
    ) -> int:
        """Submit a program, to be uploaded in the background; return its number, from 1.

        Args:
            program: its operator's tensors must stay as they are until it has taken effect; if `copied`, until `copied`
                returns. Its drive must stay as it is. It gets its schedule here.
            sampling: how long it runs, and when it is read.
            resume: where the cells start in place of ``"keep"`` while they do not hold ours; None: at the drive.
            unchanged: whether this is, unchanged, the operator that was submitted last, so that the device may keep it.
            copied: whether to send a copy of the operator.

        Raises:
            SessionClosed: after `close`, or when the session has been closed.
            SpuError: why the device is lost.
        """
        self._check_open()
        self._recovery.check()
        operator, ahead = program.operator, self._ahead
        began, upload = time.monotonic(), None
        if ahead is not None and ahead.operator() is operator and ahead.precision == program.precision:
            began, upload, self._ahead = ahead.began, ahead.upload, None
        self.abandon()  # unless it is the one that goes on
        self._copying = upload if copied and self._session.lease.copies_at_once else None  # else `begin` has copied it
        if copied and upload is None:
            program = replace(program, operator=operator.map(torch.clone))
        number, known_as = next(self._numbers), weakref.ref(operator)
        submission = Submission(number, program, sampling, resume, unchanged, known_as, ahead=upload, began=began)
        self._uploads.send(submission)
        return number

    async def exchange(
        self,
        program: Program,
        sampling: Sampling,
        *,
        freshness: Freshness,
        timeout: float,
        together: bool = False,
        resume: Tensor | None = None,
        unchanged: bool = False,
        copied: bool = False,
    ) -> list[Arrived]:
        """Submit a program, and return the readings for a step, waiting `timeout` seconds in all.

        Args:
            program, sampling, resume, unchanged, copied: as of `submit`.
            freshness, together: as of `readings`.
            timeout: max wait, in seconds.

        Raises:
            TooStale, SpuError: as of `readings`.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        number = self.submit(program, sampling, resume=resume, unchanged=unchanged, copied=copied)
        await self.copied(timeout)
        return await self._arrivals.take(number, freshness, deadline=deadline, timeout=timeout, together=together)

    async def copied(self, timeout: float | None = None) -> None:
        """Wait until the operator that was submitted last has been copied, if a copy is to be sent.

        Args:
            timeout: max wait, in seconds. Where it ends earlier, the operator must stay as it is.
        """
        if self._copying is not None:
            copying, self._copying = self._copying, None
            await copying.begun(timeout)

    async def readings(
        self, number: int, freshness: Freshness, *, timeout: float, together: bool = False
    ) -> list[Arrived]:
        """Return the readings for a step: those since the last call; or the newest again, if it is fresh enough.

        Args:
            number: of the step's program, as `submit` returned it.
            freshness: which readings will do.
            timeout: max wait, in seconds.
            together: whether the readings scheduled with a program count only when all of them have come; then they are
                those of the newest such program, also if they have been taken before.

        Raises:
            TooStale: when none came in time that will do.
            SpuError: why the device is lost, or has refused a program.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        return await self._arrivals.take(number, freshness, deadline=deadline, timeout=timeout, together=together)

    async def wait_back(self, timeout: float) -> None:
        """Wait until the device has recovered.

        Raises:
            SpuError: why it is lost, when it is not back in time or nobody tries to get it back.
        """
        self._check_open()
        await self._recovery.wait_back(timeout)

    async def close(self) -> None:
        """Break off whatever is under way; whoever waits for a reading gets `SessionClosed`."""
        self._closed = True
        self._arrivals.close()
        await self._recovery.close()
        self.abandon()
        self._uploads.abandon()
        self._background.cancel()
        await self._background.wait_idle()
        await self._uploads.wait_idle()

    @property
    def _is_closed(self) -> bool:
        return self._closed or self._session.closed

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error(self._session)

    def _start_periodic(self, submission: Submission) -> None:
        period = submission.sampling.period
        if period is not None and self._session.spu.clock == "free" and not self._periodic:
            self._periodic = True
            times = multiples(self._session, period)
            for _ in range(OUTSTANDING):
                self._background.start(read_each(self._session, times, self._arrivals, self.counts))

    def _handle_error(self, error: Exception) -> None:
        release_frames(error)
        if self._closed:
            return
        if isinstance(error, LOST):
            self._lose(error)
        else:
            self._arrivals.refuse(error)

    def _lose(self, error: SpuError) -> None:
        """Note that the device is gone: nothing under way will end."""
        if self.lost is not None:
            return
        self._uploads.forget()
        self.abandon()
        self._arrivals.forget()
        self._background.cancel()
        self._periodic = False
        self._recovery.lose(error)
        if self.lost is None:  # on_loss="raise": the next step gets the error
            self._arrivals.refuse(error)
