"""A link over links: devices that are smaller than the problem, or several of them, as one device."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from host_client.capacity import Capacity, Info
from host_client.clock import Exchange
from host_client.embeddings import Embedding
from host_client.embeddings.base import Embedded, Plan
from host_client.embeddings.fitting import check_fits
from host_client.links.base import Link
from host_client.links.embedded_upload import EmbeddedUpload
from host_client.links.lease import Lease
from spu_link.device_time import DeviceTime
from spu_link.errors import ClockMismatch, InvalidProgram, OperatorGone, ReadInPast, mismatch
from spu_link.operators import Kept, Operator
from spu_link.packing import pack, unpack
from spu_link.program import Program, Reading, Restored

T = TypeVar("T")

KNOWN_PLANS = 2
"""Max number of programs whose state can still be read as g̃: the current and the one before, with their operators."""


class EmbeddedLink(Link):
    """Devices, each behind a link, that hold parts of a problem. What is said of the device is said of the first.

    Args:
        links: one for each device; they are closed with this one.
        embedding: how systems are cut.
    """

    embedding: Embedding

    def __init__(self, links: Sequence[Link], embedding: Embedding) -> None:
        self.address, self.timeout = links[0].address, links[0].timeout
        self.embedding = embedding
        self._links = list(links)

    async def info(self, *, timeout: float) -> Info:
        """Ask all devices, and return what the first one is.

        Raises:
            ClockMismatch: when their clocks are of different kinds.
        """
        first, *others = await asyncio.gather(*(link.info(timeout=timeout) for link in self._links))
        for link, other in zip(self._links[1:], others, strict=True):
            if other.clock != first.clock:
                raise ClockMismatch(
                    f"{link.address} has a {other.clock} clock, {self.address} a {first.clock} one; devices side by "
                    "side need clocks of one kind",
                    field="clock",
                    found=other.clock,
                    expected=first.clock,
                )
        self.known = first
        return first

    async def time(self, *, timeout: float) -> Exchange:
        """Ask for the time of the first device."""
        return await self._links[0].time(timeout=timeout)

    async def report(self, *, timeout: float) -> dict[str, float]:
        """Return the sums over all devices."""
        reports = [await link.report(timeout=timeout) for link in self._links]
        return {name: sum(report.get(name, 0.0) for report in reports) for name in reports[0]}

    async def halt(self, reason: str, *, timeout: float) -> float:
        """Stop all devices, also where one does not answer; return the device time of the first."""
        return (await _all(link.halt(reason, timeout=timeout) for link in self._links))[0]

    async def close(self) -> None:
        """Close all links."""
        await _all(link.close() for link in self._links)

    async def _take(self, holder: str, ttl: float, bytes_by_path: Counter[str], *, timeout: float) -> EmbeddedLease:
        """Take the other devices, then the first; where one is not to be had, none is kept."""
        async with AsyncExitStack() as stack:
            leases = []
            for link in (*self._links[1:], self._links[0]):
                lease = await link.take(holder, ttl, bytes_by_path, timeout=timeout)
                stack.push_async_callback(partial(lease.release, timeout=timeout))
                leases.append(lease)
            stack.pop_all()
        return EmbeddedLease(self, [leases[-1], *leases[:-1]], bytes_by_path)


class EmbeddedLease(Lease):
    """Exclusive use of one device or of several, under an embedding.

    Readings carry the times of the first device. A start ``"keep"`` goes on from what the cells of a device with a cell
    for each parameter would hold (`Embedding.state_after`), as far as it has been read here, and from the drive before
    that.

    Attributes:
        leases: one for each device.
    """

    link: EmbeddedLink
    upload_type = EmbeddedUpload

    def __init__(self, link: EmbeddedLink, leases: Sequence[Lease], bytes_by_path: Counter[str]) -> None:
        first = leases[0]
        super().__init__(link, first.info, first.epoch, first.fencing, bytes_by_path)
        self.leases = list(leases)
        self._first = first
        self._state: Tensor | None = None
        self._kept: tuple[Embedded, set[int]] | None = None
        self._plans: OrderedDict[int, Plan] = OrderedDict()

    @property
    def embedding(self) -> Embedding:
        """The embedding, which cuts systems into parts."""
        return self.link.embedding

    @property
    def device_time(self) -> DeviceTime:
        """Newest device time known of the first device, in τ."""
        return self._first.device_time

    @property
    def capacity(self) -> Capacity:
        """Capacity of the smallest of the devices."""
        every = [lease.capacity for lease in self.leases]
        return Capacity(
            min(capacity.upload_bytes for capacity in every),
            min(capacity.cells for capacity in every),
            any(capacity.here for capacity in every),
            self.embedding.cell,
        )

    @property
    def keeps(self) -> bool:
        """Always: what has been computed of an operator is kept here, too."""
        return True

    @property
    def copies_at_once(self) -> bool:
        """Never: operators are needed until they have been read."""
        return False

    def check_size(self, operator: Operator) -> None:
        """Refuse an operator of which no part fits the devices.

        Raises:
            CapacityExceeded: saying which embedding would do.
            InvalidProgram: when the embedding has no map for it.
        """
        check_fits(self.embedding, operator, self.capacity.cells)

    async def agree(self, deadline: float) -> None:
        """Take the agreement with the first device's clock, which there is already."""
        self.clock = self._first.clock

    def learn(self, time: float) -> DeviceTime:
        """Take a time of the first device into account."""
        return self._first.learn(time)

    def mark_closed(self) -> None:
        """Note it for all devices."""
        super().mark_closed()
        for lease in self.leases:
            lease.mark_closed()

    def forget(self) -> None:
        """Forget what the devices hold."""
        super().forget()
        self._state = self._kept = None
        self._plans.clear()
        for lease in self.leases:
            lease.forget()

    async def save_state(self, *, timeout: float) -> bytes:
        """Return the state of all devices, and that of the cells as the next program would start from it."""
        states = [await lease.save_state(timeout=timeout) for lease in self.leases]
        devices = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states]
        tensors = {f"device.{index}": device for index, device in enumerate(devices)}
        if self._state is not None:
            tensors["cells"] = self._state.contiguous()
        return pack(_Devices(free_from=[lease.free_from for lease in self.leases]), tensors)

    async def renew(self, *, timeout: float) -> None:
        """Keep all devices."""
        await _all(lease.renew(timeout=timeout) for lease in self.leases)

    async def release(self, *, timeout: float) -> None:
        """Give all devices back."""
        self.forget()
        await _all(lease.release(timeout=timeout) for lease in self.leases)

    def check_single(self, what: str) -> None:
        """Refuse what only makes sense where the state of one device is g̃.

        Raises:
            InvalidProgram: naming the embedding.
        """
        if not self.embedding.single:
            raise InvalidProgram(
                f"embedding {self.embedding.name!r} gives each part its own time on a device, and reads it with its "
                f"program: {what} would be of the last part alone; use solve",
                field="embedding",
                found=self.embedding.name,
                expected="solve, or an upload with its readings",
            )

    async def embed(self, operator: Operator) -> Embedded:
        """Return an operator made ready; of `Kept` what is here.

        Raises:
            OperatorGone: when the operator to be kept is not here any more.
            CapacityExceeded: when the devices are too small.
            InvalidProgram: when the embedding has no map for it.
        """
        if isinstance(operator, Kept):
            if self._kept is None or operator.sequence not in self._kept[1]:
                raise OperatorGone(
                    f"the operator of program {operator.sequence} is not here any more; send it again",
                    field="kept.sequence",
                    found=operator.sequence,
                )
            return self._kept[0]
        self.check_size(operator)
        return await asyncio.to_thread(self.embedding.embed, operator)

    def start_of(self, program: Program) -> Literal["drive"] | Tensor:
        """Return where a program starts, in parameters."""
        if isinstance(program.start, Tensor):
            return program.start
        if program.start == "drive" or self._state is None or self._state.shape != program.drive.shape:
            return "drive"
        return self._state

    def earliest(self, not_before: float | None) -> list[float | None]:
        """Return the earliest times on all devices.

        They are as long after its last program on each, as `not_before` is on the first.
        """
        first, others = self._first.free_from, self.leases[1:]
        if not_before is None or first is None:
            return [not_before, *(None for _ in others)]
        delay = max(0.0, not_before - first)
        return [not_before, *(None if lease.free_from is None else lease.free_from + delay for lease in others)]

    def remember(self, embedded: Embedded, sequence: int, plan: Plan) -> None:
        """Keep what the last program of a plan, which has taken effect, was made of."""
        if self._kept is None or self._kept[0] is not embedded:
            self._kept = embedded, set()
        self._kept[1].add(sequence)
        self._plans[sequence] = plan
        while len(self._plans) > KNOWN_PLANS:
            self._plans.popitem(last=False)

    async def solution(self, plan: Plan, reading: Reading, values: Sequence[Tensor]) -> Reading:
        """Return the reading of g̃ from those of all parts; `reading` says when."""

        def map_back() -> tuple[Tensor, Tensor]:
            value = plan.solution(values)
            return value, self.embedding.state_after(plan.start.to(value), value, plan.damping * reading.age)

        value, self._state = await asyncio.to_thread(map_back)
        return replace(reading, value=value)

    async def _advance(self, duration: float, *, timeout: float) -> float:
        return (await asyncio.gather(*(lease.advance(duration, timeout=timeout) for lease in self.leases)))[0]

    async def _read(self, at: float | None, window: float, *, timeout: float) -> Reading:
        self.check_single("a reading by itself")
        reading = await self._first.read(at, window, timeout=timeout)
        plan = self._plans.get(reading.sequence)
        if plan is None:
            raise ReadInPast(
                f"the state read is that of program {reading.sequence}, whose operator is not known here (any more)",
                field="sequence",
                found=reading.sequence,
                expected=f"one of the last {KNOWN_PLANS} programs of this session",
            )
        return await self.solution(plan, reading, [reading.value])

    async def _restore_state(self, state: bytes, *, timeout: float) -> Restored:
        saved, tensors = unpack(state, _Devices)
        cells = tensors.pop("cells", None)
        names = [f"device.{index}" for index in range(len(self.leases))]
        if set(tensors) != set(names) or len(saved.free_from) != len(names):
            raise mismatch("state", f"that of {len(tensors)} devices", f"that of {len(names)}")
        restored = [
            await lease.restore_state(tensors[name].numpy().tobytes(), timeout=timeout)
            for lease, name in zip(self.leases, names, strict=True)
        ]
        for lease, before, now in zip(self.leases, saved.free_from, restored, strict=True):
            lease.free_from = None if before is None else before + now.shift
        self._state = cells
        return restored[0]


class _Devices(BaseModel):
    """The parts of the devices' state that are no tensors.

    Attributes:
        free_from: device time at which each has run its last program, in τ.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    free_from: list[float | None]


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Await all, and then raise the first error if there was one."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException):
            raise result
    return ended  # type: ignore[return-value]
