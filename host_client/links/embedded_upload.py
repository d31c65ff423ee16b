"""A program on its way to devices that are smaller than its operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from host_client.embeddings.base import Embedded, Plan, Stage
from host_client.links.base import Path, seconds_left
from host_client.links.lease import Lease, Upload
from spu_link.errors import mismatch
from spu_link.program import Applied, Program, Reading

if TYPE_CHECKING:
    from host_client.links.embedded import EmbeddedLease


class EmbeddedUpload(Upload):
    """A program on its way, stage by stage."""

    _lease: EmbeddedLease
    _embedded: Embedded | None = None
    _ahead: Upload | None = None
    _runs: Sequence[StageRun] = ()

    @property
    def sent_bytes(self) -> int:
        """Bytes of tensors that have left so far."""
        return sum(run.sent_bytes for run in self._runs) if self._runs else self._ahead.sent_bytes if self._ahead else 0

    @property
    def path(self) -> Path | None:
        """Path of its bytes; None before the first of them."""
        return next((run.path for run in self._runs if run.path is not None), None)

    def begin(self) -> None:
        """Embed the operator, and send the first part's ahead."""
        self._go_ahead()

    async def _run(self, program: Program, timeout: float | None) -> AsyncGenerator[Applied | Reading, None]:
        """Run the plan; when its last program took effect, and g̃ of each reading.

        Each program runs for `length` τ, one after the other on each device. The times are those of the last program of
        the first device.

        Raises:
            InvalidProgram: without readings, where a plan is several programs, which have to be read before their time
                is over.
        """
        lease, embedding, schedule = self._lease, self._lease.embedding, program.schedule
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        if not schedule.reads:
            lease.check_single("a program without readings")
        if len(schedule.reads) > 1 and embedding.stages > 1:
            found = len(schedule.reads)
            raise mismatch("readings", found, f"one: embedding {embedding.name!r} goes on from what is read")
        if self._beginning is None:
            self._embedded = await lease.embed(self.operator)
        else:
            await self._beginning
        embedded, length = self._embedded, schedule.length or 0.0
        assert embedded is not None
        program = replace(program, start=lease.start_of(program), schedule=replace(schedule, length=length))
        stage = await asyncio.to_thread(embedded.plan, program)
        earliest = lease.earliest(schedule.not_before)
        for _ in range(embedding.stages - 1):
            run = self._start_stage(stage, earliest, deadline)
            _, values = await run.complete[0]
            following = await asyncio.to_thread(stage.then, values)
            assert isinstance(following, Stage)
            stage, earliest = following, [None] * len(lease.leases)
        run = self._start_stage(stage, earliest, deadline)
        applied = await run.took_effect
        start = program.start if isinstance(program.start, Tensor) else program.drive
        plan = Plan(stage, start, program.damping)
        lease.note_effect(self._known_as(), applied.sequence, applied.time + length)
        lease.remember(embedded, applied.sequence, plan)
        yield applied
        for complete in run.complete:
            yield await lease.solution(plan, *await complete)
        await run.wait_idle()

    def _start_stage(self, stage: Stage, earliest: Sequence[float | None], deadline: float | None) -> StageRun:
        ahead = None if self._runs else self._ahead
        run = StageRun(stage.problems, self._lease.leases, earliest, ahead, deadline)
        self._runs = [*self._runs, run]
        return run

    async def _send_ahead(self) -> None:
        lease = self._lease
        self._embedded = await lease.embed(self.operator)
        if self.operator.nbytes:  # the device does not hold it
            self._ahead = lease.leases[0].upload(self._embedded.first, self._precision)
            self._ahead.begin()
            await self._ahead.begun()

    async def _release(self) -> None:
        for run in self._runs:
            await run.close()
        if self._ahead is not None:
            await self._ahead.abandon()


class StageRun:
    """The problems of one stage on their way through the devices.

    Each device takes every k-th of them, in order. On a free clock the next one is uploaded while the one before it
    runs, to take effect at its end.

    Args:
        problems: what is to be solved, each to be run and read alike.
        leases: of the k devices; the first one gets the first problem.
        not_before: earliest device time for the first program of each device, in τ; None for now.
        ahead: an upload of the first problem's operator that has begun.
        deadline: when all must be there, in seconds of the loop's clock; None for each program's own default.

    Attributes:
        took_effect: when the last program of each device has taken effect: that of the first device.
        complete: for each reading, that of the first device's last program, and the values of all problems in order.
        sent_bytes: bytes of tensors that have left so far.
        path: how they went; None before the first.
    """

    def __init__(
        self,
        problems: Sequence[Program],
        leases: Sequence[Lease],
        not_before: Sequence[float | None],
        ahead: Upload | None,
        deadline: float | None,
    ) -> None:
        loop, reads = asyncio.get_running_loop(), problems[0].schedule.reads
        self.took_effect: asyncio.Future[Applied] = loop.create_future()
        self.complete: list[asyncio.Future[tuple[Reading, list[Tensor]]]] = [loop.create_future() for _ in reads]
        self.sent_bytes = 0
        self.path: Path | None = None
        self._problems, self._leases, self._ahead, self._deadline = problems, leases, ahead, deadline
        self._readings: list[dict[int, Reading]] = [{} for _ in reads]
        self._last = range(0, len(self._problems), len(self._leases))[-1]  # of the first device
        self._task = asyncio.create_task(self._go(not_before))

    async def wait_idle(self) -> None:
        """Wait until every program has been read."""
        await self._task

    async def close(self) -> None:
        """Break off what is still under way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for future in self._futures():
            if future.done() and not future.cancelled():
                future.exception()  # it has been raised already, or nobody waits for it
            future.cancel()

    def _futures(self) -> list[asyncio.Future[Any]]:
        return [self.took_effect, *self.complete]

    async def _go(self, not_before: Sequence[float | None]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                workers = [
                    group.create_task(self._in_turn(group, number, lease, earliest))
                    for number, (lease, earliest) in enumerate(zip(self._leases, not_before, strict=True))
                ]
                applied = [await worker for worker in workers]
                assert applied[0] is not None
                self.took_effect.set_result(applied[0])
        except BaseExceptionGroup as several:
            error = several.exceptions[0]
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            for future in self._futures():
                if not future.done():
                    future.set_exception(error)

    async def _in_turn(
        self, group: asyncio.TaskGroup, number: int, lease: Lease, not_before: float | None
    ) -> Applied | None:
        """Run a device's problems; when the last of them took effect, or None if it has none."""
        applied = None
        for index in range(number, len(self._problems), len(self._leases)):
            taking: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
            program = group.create_task(self._program(lease, index, not_before, taking))
            applied = await taking
            if lease.stepped and index + len(self._leases) < len(self._problems):
                await program
            not_before = lease.free_from
        return applied

    async def _program(
        self, lease: Lease, index: int, not_before: float | None, taking: asyncio.Future[Applied]
    ) -> None:
        problem = self._problems[index]
        if index == 0 and self._ahead is not None:
            upload = self._ahead
        else:
            upload = lease.upload(problem.operator, problem.precision, unchanged=True)
        schedule = replace(problem.schedule, not_before=not_before)
        program = replace(problem, operator=upload.operator, schedule=schedule)
        timeout = None if self._deadline is None else seconds_left(self._deadline)
        number = 0
        async with aclosing(upload.run(program, timeout=timeout)) as events:
            async for event in events:
                if isinstance(event, Applied):
                    self.sent_bytes += upload.sent_bytes
                    self.path = upload.path or self.path
                    taking.set_result(event)
                else:
                    self._came(number, index, event)
                    number += 1

    def _came(self, number: int, index: int, reading: Reading) -> None:
        readings = self._readings[number]
        readings[index] = reading
        if len(readings) == len(self._problems):
            values = [readings[k].value for k in range(len(readings))]
            self.complete[number].set_result((readings[self._last], values))
