"""A program on its way to a device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Self

from host_client.links.base import Path, ReadPlan, until
from spu_link.errors import CapacityExceeded, ProtocolError, SpuError
from spu_link.operators import Damped, Operator
from spu_link.operators.base import ArrayLike
from spu_link.precision import Precision
from spu_link.program import Applied, Program, Reading, StartPolicy

if TYPE_CHECKING:
    from host_client.aio.session import Session


def check_cells(operator: Operator, cells: int) -> None:
    """Refuse an operator with more parameters than the device has cells.

    Raises:
        CapacityExceeded: saying which embedding would do.
    """
    if operator.parameters <= cells:
        return
    from host_client.embeddings.named import advice

    raise CapacityExceeded(
        f"the program needs {operator.parameters} cells, the device has {cells}; {advice(operator, cells)}",
        field="cells",
        found=operator.parameters,
        expected=f"at most {cells}",
    )


class Upload:
    """A program on its way to the device: the operator first, then the rest. Made by `Session.upload`.

    One call of `program`, `solve` or `abandon` ends it.

    Attributes:
        operator: F.
    """

    def __init__(self, session: Session, operator: Operator, precision: Precision | None) -> None:
        self.operator = operator
        self._precision = precision
        self._session = session
        # A damped operator travels as what it damps.
        inner = operator.operator if isinstance(operator, Damped) else operator
        self._upload = session._link.upload(session._ref, inner, precision) if isinstance(inner, Operator) else None
        self._beginning: asyncio.Task[None] | None = None
        self._over = False

    @property
    def sent_bytes(self) -> int:
        """Bytes of tensors that have left so far."""
        return self._upload.sent_bytes if self._upload else 0

    @property
    def path(self) -> Path | None:
        """How its bytes go; None before the first of them."""
        return self._upload.path if self._upload and self._upload.sent_bytes else None

    def begin(self) -> None:
        """Send the operator ahead, if anything of it travels."""
        if self._upload is not None and self.operator.nbytes:
            self._beginning = asyncio.create_task(self._upload.begin())

    async def begun(self, timeout: float | None = None) -> None:
        """Wait until what `begin` does is done, or has failed, which is told later; `timeout` seconds at most."""
        if self._beginning is not None:
            await asyncio.wait([self._beginning], timeout=timeout)

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
        """Send the rest; returns when the program has taken hold. Arguments and errors as of `Session.program`."""
        program = await self._program(drive, damping, noise, start, not_before)
        async with aclosing(self._finish(program, [], not_before, self._deadline([], not_before, timeout))) as events:
            applied = await anext(events)
        assert isinstance(applied, Applied)
        return applied

    async def solve(
        self,
        drive: ArrayLike,
        *,
        analog_time: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        window: float = 0.0,
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Reading:
        """Send the rest, let the device evolve, and read it. Arguments and errors as of `Session.solve`."""
        events = self.stream(
            drive,
            [ReadPlan(analog_time, window)],
            length=analog_time,
            damping=damping,
            noise=noise,
            start=start,
            not_before=not_before,
            timeout=timeout,
        )
        async with aclosing(events):
            await anext(events)
            reading = await anext(events)
        assert isinstance(reading, Reading)
        return reading

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
        """Send the rest, and give what comes back as it comes: when the program took hold, then each reading.

        Args:
            drive, damping, noise, start, not_before, timeout: as of `Session.program`.
            reads: the readings to take, in the order of their times.
            length: by how much a stepped clock is moved under the program, in τ: at least to the last reading.
        """
        session = self._session
        program = await self._program(drive, damping, noise, start, not_before)
        stepped = session.spu.clock == "stepped"
        deadline = self._deadline(reads, not_before, timeout)
        try:
            # More than once where a sum has been rounded down: each time goes on by at least the last digit.
            while stepped and not_before is not None and not_before > session.device_time:
                await session._move(not_before - session.device_time, _left(deadline))
            async with aclosing(self._finish(program, reads, not_before, deadline)) as events:
                yield await anext(events)
                if stepped:
                    await session._move(length, _left(deadline))
                async for event in events:
                    yield event
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Break off, unless it is over. Nothing is left behind, and the old program goes on."""
        if self._over:
            return
        self._over = True
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        if self._upload is not None:
            await self._upload.abandon()

    async def __aenter__(self) -> Self:
        """The upload itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Abandon what has not been finished."""
        await self.abandon()

    async def _program(
        self, drive: ArrayLike, damping: float, noise: float, start: StartPolicy | ArrayLike, not_before: float | None
    ) -> Program:
        try:
            self._session._check_epoch("not_before", not_before)
            program = Program(
                self.operator, drive, damping=damping, noise=noise, start=start, precision=self._precision
            )
            check_cells(program.operator, self._session.spu.capacity.cells)
            return program
        except SpuError:
            await self.abandon()
            raise

    def _deadline(self, reads: Sequence[ReadPlan], not_before: float | None, timeout: float | None) -> float:
        """When everything must be over, in seconds of the loop's clock."""
        if timeout is None:
            session = self._session
            last = max((read.after for read in reads), default=0.0)
            timeout = session.spu.timeout + session._seconds_until((not_before or session.device_time) + last)
        return asyncio.get_running_loop().time() + timeout

    async def _finish(
        self, program: Program, reads: Sequence[ReadPlan], not_before: float | None, deadline: float
    ) -> AsyncGenerator[Applied | Reading, None]:
        session = self._session
        if self._over:
            raise ProtocolError("this upload is over; begin another one", field="upload", found="over")
        upload = self._upload
        assert upload is not None  # else there is no program
        try:
            if self._beginning is not None:
                await until(deadline, "program", self._beginning)
            async with aclosing(upload.finish(program, reads, not_before, timeout=_left(deadline))) as events:
                self._over = True
                async for event in events:
                    if isinstance(event, Applied):
                        session.bytes_by_path[upload.path] += upload.sent_bytes
                    session._learn(event.time)
                    yield event
        finally:
            await self.abandon()


def _left(deadline: float) -> float:
    """Seconds until a deadline; a call that is given none of them ends at once."""
    return max(0.0, deadline - asyncio.get_running_loop().time())
