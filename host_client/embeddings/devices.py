"""Problems of one stage, in turn on each of several devices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from host_client.aio.session import Session
from host_client.aio.upload import Upload
from host_client.embeddings.base import Problem
from host_client.links.base import Path, ReadPlan
from spu_link.operators import Kept, Operator
from spu_link.precision import Precision
from spu_link.program import Applied, Reading


class Device:
    """One device, and what is known of it.

    Attributes:
        session: exclusive use of it.
        free_from: device time at which its last program has run its schedule, in τ; None before the first.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.free_from: float | None = None
        self._held: tuple[Operator, int] | None = None

    def upload(self, operator: Operator, precision: Precision | None, ahead: Upload | None) -> Upload:
        """A program on its way: the one that has begun, or one without its operator if the device holds it."""
        held, self._held = self._held, None  # unless it takes hold, nobody knows
        if ahead is not None:
            return ahead
        if held is not None and held[0] is operator and Kept.kind in self.session.spu.features:
            return Upload(self.session, Kept(held[1], operator.parameters), None)
        return Upload(self.session, operator, precision)

    def forget(self) -> None:
        """Nothing is known of it."""
        self.free_from = self._held = None

    def took_hold(self, operator: Operator, applied: Applied, length: float) -> None:
        """A program with this operator has taken hold, and runs for `length` τ."""
        self._held = operator, applied.sequence
        self.free_from = applied.time + length


@dataclass(frozen=True)
class Asked:
    """What is the same for all programs of a plan.

    Attributes:
        reads, length, noise: as of `Upload.stream`.
        precision: how operators travel.
        deadline: when all must be there, in seconds of the loop's clock; None for each program's own default.
    """

    reads: Sequence[ReadPlan]
    length: float
    noise: float
    precision: Precision | None
    deadline: float | None


class Run:
    """The problems of one stage on their way through the devices.

    Each device takes every k-th of them, in order. On a free clock the next one is uploaded while the one before it
    runs, to take hold at its end.

    Args:
        problems: what is to be solved.
        devices: k of them; the first one gets the first problem.
        asked: how they are run and read.
        not_before: earliest device time for the first program of each device, in τ; None for now.
        ahead: an upload of the first problem's operator that has begun.

    Attributes:
        took_hold: when the last program of each device has taken hold: that of the first device.
        complete: for each reading, that of the first device's last program, and the values of all problems in order.
        sent_bytes: bytes of tensors that have left so far.
        path: how they went; None before the first.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        devices: Sequence[Device],
        asked: Asked,
        not_before: Sequence[float | None],
        ahead: Upload | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.took_hold: asyncio.Future[Applied] = loop.create_future()
        self.complete: list[asyncio.Future[tuple[Reading, list[Tensor]]]] = [loop.create_future() for _ in asked.reads]
        self.sent_bytes = 0
        self.path: Path | None = None
        self._problems, self._devices, self._asked, self._ahead = list(problems), list(devices), asked, ahead
        self._readings: list[dict[int, Reading]] = [{} for _ in asked.reads]
        self._last = range(0, len(self._problems), len(self._devices))[-1]  # of the first device
        self._task = asyncio.create_task(self._go(not_before))

    async def over(self) -> None:
        """Wait until every program has been read."""
        await self._task

    async def close(self) -> None:
        """Break off what is still under way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for future in self._futures():
            if future.done() and not future.cancelled():
                future.exception()  # somebody has been told, or nobody wants to know
            future.cancel()

    def _futures(self) -> list[asyncio.Future[Any]]:
        return [self.took_hold, *self.complete]

    async def _go(self, not_before: Sequence[float | None]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                workers = [
                    group.create_task(self._in_turn(group, number, device, earliest))
                    for number, (device, earliest) in enumerate(zip(self._devices, not_before, strict=True))
                ]
                applied = [await worker for worker in workers]
                assert applied[0] is not None
                self.took_hold.set_result(applied[0])
        except BaseExceptionGroup as several:
            error = several.exceptions[0]
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            for future in self._futures():
                if not future.done():
                    future.set_exception(error)

    async def _in_turn(
        self, group: asyncio.TaskGroup, number: int, device: Device, not_before: float | None
    ) -> Applied | None:
        """Run a device's problems; when the last of them took hold, or None if it has none."""
        applied = None
        for index in range(number, len(self._problems), len(self._devices)):
            taking: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
            program = group.create_task(self._program(device, index, not_before, taking))
            applied = await taking
            if device.session.spu.clock == "stepped" and index + len(self._devices) < len(self._problems):
                await program
            not_before = device.free_from
        return applied

    async def _program(
        self, device: Device, index: int, not_before: float | None, taking: asyncio.Future[Applied]
    ) -> None:
        asked, problem, loop = self._asked, self._problems[index], asyncio.get_running_loop()
        upload = device.upload(problem.operator, asked.precision, self._ahead if index == 0 else None)
        timeout = None if asked.deadline is None else asked.deadline - loop.time()
        stream = upload.stream(
            problem.drive,
            asked.reads,
            length=asked.length,
            damping=problem.damping,
            noise=asked.noise,
            start=problem.start,
            not_before=not_before,
            timeout=timeout,
        )
        number = 0
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, Applied):
                    device.took_hold(problem.operator, event, asked.length)
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
