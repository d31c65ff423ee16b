"""A program on its way to devices that are smaller than its operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from host_client.aio.upload import Upload
from host_client.embeddings.base import Embedded, Plan, Stage
from host_client.embeddings.devices import Asked, Run
from host_client.links.base import Path, ReadPlan
from spu_link.errors import ProtocolError
from spu_link.operators import Operator
from spu_link.operators.base import ArrayLike, mismatch
from spu_link.precision import Precision
from spu_link.program import Applied, Program, Reading, StartPolicy

if TYPE_CHECKING:
    from host_client.embeddings.session import EmbeddedSession


class EmbeddedUpload(Upload):
    """A program on its way, stage by stage. Made by `EmbeddedSession.upload`."""

    def __init__(self, session: EmbeddedSession, operator: Operator, precision: Precision | None) -> None:
        self.operator = operator
        self._precision = precision
        self._at = session
        self._beginning: asyncio.Task[None] | None = None
        self._embedded: Embedded | None = None
        self._ahead: Upload | None = None
        self._runs: list[Run] = []
        self._over = False

    @property
    def sent_bytes(self) -> int:
        """Bytes of tensors that have left so far."""
        return sum(run.sent_bytes for run in self._runs) if self._runs else self._ahead.sent_bytes if self._ahead else 0

    @property
    def path(self) -> Path | None:
        """How its bytes go; None before the first of them."""
        return next((run.path for run in self._runs if run.path is not None), None)

    def begin(self) -> None:
        """Embed the operator, and send the first part's ahead."""
        self._beginning = asyncio.create_task(self._begin())

    async def abandon(self) -> None:
        """Break off, unless it is over. The old program goes on."""
        self._over = True
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        for run in self._runs:
            await run.close()
        if self._ahead is not None:
            await self._ahead.abandon()

    async def program(
        self,
        drive: ArrayLike,
        *,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """Send the rest; returns when the program has taken hold.

        Raises:
            InvalidProgram: where a plan is several programs, which have to be read before their time is over.
        """
        stream = self.stream(
            drive,
            [],
            length=0.0,
            damping=damping,
            noise=noise,
            start=start,
            not_before=not_before,
            timeout=timeout,
        )
        (applied,) = [event async for event in stream]
        assert isinstance(applied, Applied)
        return applied

    async def stream(
        self,
        drive: ArrayLike,
        reads: Sequence[ReadPlan],
        *,
        length: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Applied | Reading, None]:
        """Run the plan; when its last program took hold, and g̃ of each reading.

        Each program runs for `length` τ, one after the other on each device. The times told are those of the last
        program of the first device.
        """
        session = self._at
        if self._over:
            raise ProtocolError("this upload is over; begin another one", field="upload", found="over")
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        try:
            if not reads:
                session.check_single("a program without readings")
            session._check_epoch("not_before", not_before)
            program = Program(self.operator, drive, damping=damping, noise=noise, start=start)
            if len(reads) > 1 and session.embedding.stages > 1:
                raise mismatch(
                    "readings", len(reads), f"one: embedding {session.embedding.name!r} goes on from what is read"
                )
            asked = Asked(reads, length, program.noise, self._precision, deadline)
            async with aclosing(self._through(program, asked, not_before)) as events:
                async for event in events:
                    yield event
        finally:
            await self.abandon()

    async def _through(
        self, program: Program, asked: Asked, not_before: float | None
    ) -> AsyncGenerator[Applied | Reading, None]:
        session, embedding = self._at, self._at.embedding
        if self._beginning is None:
            self._embedded = await session.embedded(self.operator)
        else:
            await self._beginning
        embedded = self._embedded
        assert embedded is not None
        start = session.start_of(program)
        stage = await asyncio.to_thread(embedded.plan, program.drive, damping=program.damping, start=start)
        earliest = session.earliest(not_before)
        for _ in range(embedding.stages - 1):
            run = self._run(stage, asked, earliest)
            _, values = await run.complete[0]
            following = await asyncio.to_thread(stage.then, values)
            assert isinstance(following, Stage)
            stage, earliest = following, [None] * len(session.devices)
        run = self._run(stage, asked, earliest)
        applied = await run.took_hold
        plan = Plan(stage, program.drive if isinstance(start, str) else start, program.damping)
        session.took_hold(embedded, applied, plan)
        yield applied
        for complete in run.complete:
            yield await session.solution(plan, *await complete)
        await run.over()

    def _run(self, stage: Stage, asked: Asked, earliest: Sequence[float | None]) -> Run:
        ahead = None if self._runs else self._ahead
        self._runs.append(Run(stage.problems, self._at.devices, asked, earliest, ahead))
        return self._runs[-1]

    async def _begin(self) -> None:
        session = self._at
        self._embedded = await session.embedded(self.operator)
        if self.operator.nbytes:  # the device does not hold it
            self._ahead = Upload(session, self._embedded.first, self._precision)
            self._ahead.begin()
            await self._ahead.begun()
