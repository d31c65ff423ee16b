"""Programs on their way to a device, one after the other, in the background."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from host_client.aio import Upload
from host_client.loop.arrivals import Arrivals
from host_client.loop.recovery import LOST
from host_client.loop.sampling import Sampling
from host_client.record.clocks import ClockNotes
from host_client.record.events import Event, Uploaded
from spu_link.errors import OperatorGone, SpuError, UploadCorrupt
from spu_link.operators import Kept, Operator
from spu_link.program import Applied, Program

if TYPE_CHECKING:
    from host_client.aio import Session


@dataclass(eq=False)
class Submission:
    """A program as a step submits it; see `Feed.submit`.

    Attributes:
        number: from 1.
        program: as it was given, but for its operator where that is copied, and for its schedule.
        known_as: the operator that was given, to know it again.
        ahead: the upload that has begun to send it; None where there is none.
        began: host time at which the first of it was there.
    """

    number: int
    program: Program
    sampling: Sampling
    resume: Tensor | None
    unchanged: bool
    known_as: weakref.ref[Operator]
    ahead: Upload | None
    began: float


class Background:
    """Tasks of one owner, on the running event loop.

    Args:
        on_error: called with the error that a task ends with, unless it was cancelled before that.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task, and go on."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def cancel(self) -> None:
        """Cancel every task."""
        for task in self._tasks:
            task.cancel()
        self._cancelled |= self._tasks
        self._tasks = set()

    async def wait_idle(self) -> None:
        """Wait until nothing is under way, including what begins meanwhile."""
        while under_way := self._tasks | self._cancelled:
            await asyncio.gather(*under_way, return_exceptions=True)

    def _finish(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()  # asked for in any case: else asyncio logs it
        if task in self._cancelled:
            self._cancelled.discard(task)
            return
        self._tasks.discard(task)
        if isinstance(error, Exception):
            self._on_error(error)


class Uploads:
    """One upload in flight, until its program has taken effect, and at most one that waits for it.

    Args:
        session: the device.
        arrivals: receives readings, and errors of programs that the device refuses.
        background: runs the uploads, and handles the loss of the device.
        on_effect: called with each program that has taken effect.
        counts: counts ``"uploads"``, ``"kept"`` and ``"dropped"``.
        record: called with the outcome of each.
    """

    def __init__(
        self,
        session: Session,
        arrivals: Arrivals,
        background: Background,
        on_effect: Callable[[Submission], None],
        counts: Counter[str],
        record: Callable[[Event], None],
    ) -> None:
        self._session, self._arrivals, self._background = session, arrivals, background
        self._on_effect, self._counts, self._record = on_effect, counts, record
        self._clocks = ClockNotes(record)
        self._releases = Background(arrivals.refuse)
        self._in_flight: Submission | None = None
        self._waiting: Submission | None = None
        self._holds_ours = False  # whether the cells are where a program of ours left them

    @property
    def free_from(self) -> float | None:
        """Device time at which the last program has run its schedule, in τ; None before the first."""
        return self._session.free_from if self._holds_ours else None

    @property
    def idle(self) -> bool:
        """True if nothing is in flight."""
        return self._in_flight is None

    def send(self, submission: Submission) -> None:
        """Upload a program, at once or when the one in flight has taken effect; it replaces one that waits for that."""
        if self._in_flight is None:
            self._in_flight = submission
            self._background.start(self._upload(submission))
        else:
            if self._waiting is not None:
                self._end(self._waiting, "dropped")
            self._waiting = submission

    def release(self, upload: Upload) -> None:
        """Abandon an upload that was sent ahead, unless it is over."""
        self._releases.start(upload.abandon())

    def resume(self, free_from: float, operator: Operator | None, sequence: int) -> None:
        """Go on under the program of an earlier run; arguments as of `Feed.resume`."""
        self._holds_ours = True
        self._session.lease.note_effect(None if operator is None else weakref.ref(operator), sequence, free_from)

    def forget(self) -> None:
        """Note that the device is gone: nothing under way will end, and nothing is known of what it holds."""
        self._break_off("failed", "dropped")
        self._holds_ours = False

    def abandon(self) -> None:
        """Abandon what is under way: nobody wants it any more."""
        self._break_off("abandoned", "abandoned")

    async def wait_idle(self) -> None:
        """Wait until every upload that was released has ended."""
        await self._releases.wait_idle()

    def _break_off(self, in_flight: Literal["abandoned", "failed"], waiting: Literal["abandoned", "dropped"]) -> None:
        if self._in_flight is not None:
            self._end(self._in_flight, in_flight)
        if self._waiting is not None:
            self._end(self._waiting, waiting)
        self._in_flight = self._waiting = None

    async def _upload(self, submission: Submission) -> None:
        try:
            try:
                await self._program(submission)
            except (OperatorGone, UploadCorrupt):
                submission.ahead, submission.unchanged = None, False
                await self._program(submission)  # once more, with everything
        except LOST:
            raise
        except SpuError as error:
            if self._in_flight is submission:
                self._end(submission, "failed")
            self._arrivals.refuse(error)
            self._send_next(submission)
        finally:
            if submission.ahead is not None:
                self.release(submission.ahead)

    async def _program(self, submission: Submission) -> None:
        session, program = self._session, submission.program
        upload = submission.ahead or session.lease.upload(
            program.operator, program.precision, known_as=submission.known_as, unchanged=submission.unchanged
        )
        start = program.start
        if start == "keep" and not self._holds_ours:
            start = "drive" if submission.resume is None else submission.resume
        now = session.device_time if session.spu.clock == "stepped" else None
        schedule = submission.sampling.schedule(now, self.free_from)
        program = replace(program, operator=upload.operator, start=start, schedule=schedule)
        async with aclosing(upload.run(program)) as events:
            async for event in events:
                if isinstance(event, Applied):
                    self._note_effect(submission, event, upload)
                else:
                    self._arrivals.add(event, event.time)
        self._arrivals.finish(submission.number)

    def _note_effect(self, submission: Submission, applied: Applied, upload: Upload) -> None:
        kept = isinstance(upload.operator, Kept)
        self._holds_ours = True
        self._arrivals.expect(applied, submission.number)
        self._counts["uploads"] += 1
        self._counts["kept"] += kept
        self._clocks.note(self._session.clock)
        self._record(
            Uploaded(
                submission.number,
                submission.began,
                time.monotonic(),
                "took effect",
                applied.epoch,
                applied.sequence,
                applied.time,
                upload.sent_bytes,
                upload.path,
                kept,
            )
        )
        self._on_effect(submission)
        self._send_next(submission)

    def _send_next(self, submission: Submission) -> None:
        """Send the next one, unless that has been done."""
        if self._in_flight is submission:
            self._in_flight = None
            if self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                self.send(waiting)

    def _end(self, submission: Submission, outcome: Literal["dropped", "abandoned", "failed"]) -> None:
        """Record the outcome of a program that has not taken effect, and never will."""
        if outcome == "dropped":
            self._counts["dropped"] += 1
        if submission.ahead is not None:
            self.release(submission.ahead)
        self._record(
            Uploaded(submission.number, submission.began, time.monotonic(), outcome, None, None, None, 0, None, False)
        )
