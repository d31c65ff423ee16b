"""Exclusive use of devices that are smaller than the problem."""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from host_client.aio.session import Session
from host_client.aio.upload import Upload
from host_client.embeddings.base import Embedded, Embedding, Plan, Start
from host_client.embeddings.devices import Device
from host_client.embeddings.upload import EmbeddedUpload
from host_client.links.base import Capacity
from spu_link.errors import InvalidProgram, OperatorGone, ReadInPast
from spu_link.operators import Damped, Kept, Operator
from spu_link.operators.base import mismatch
from spu_link.precision import Precision
from spu_link.program import Applied, Program, Reading, Restored

KNOWN_PLANS = 2
"""Most programs whose state can still be read as g̃: the one in force and the one before, with their operators."""


class EmbeddedSession(Session):
    """Exclusive use of one device or of several, under an embedding. Made by `Spu.session`.

    It is the session on the first device; readings carry its times. A start ``"keep"`` goes on from what the cells of a
    device with a cell for each parameter would hold (`Embedding.state_after`), as far as this session has read it, and
    from the drive before that.

    Args:
        session: arguments of `Session`.
        embedding: how systems are cut.
        beside: sessions on the other devices; they are closed with this one.
    """

    def __init__(self, *session: Any, embedding: Embedding, beside: Sequence[Session] = ()) -> None:
        super().__init__(*session)
        self._embedding = embedding
        self._beside = list(beside)
        for one in self._beside:
            one.bytes_by_path = self.bytes_by_path
        self.devices = [Device(one) for one in (self, *self._beside)]
        self._state: Tensor | None = None
        self._kept: tuple[Embedded, set[int]] | None = None
        self._plans: OrderedDict[int, Plan] = OrderedDict()

    @property
    def embedding(self) -> Embedding:
        """How systems are cut."""
        return self._embedding

    @property
    def capacity(self) -> Capacity:
        """What the smallest of the devices can hold."""
        every = [device.session.spu.capacity for device in self.devices]
        return Capacity(
            min(one.upload_bytes for one in every),
            min(one.cells for one in every),
            any(one.here for one in every),
            self.embedding.cell,
        )

    @property
    def keeps(self) -> bool:
        """Whether an operator may be named by `Kept`: what has been computed of it is kept here, too."""
        return True

    @property
    def copies_at_once(self) -> bool:
        """Never: operators are needed until they have been read."""
        return False

    async def read(self, at: float | None = None, window: float = 0.0, *, timeout: float | None = None) -> Reading:
        """Measure the state, and map it. See `Session.read`.

        Raises:
            InvalidProgram: where a plan is several programs.
            ReadInPast: also when the state is that of a program whose operator is not here any more.
        """
        self.check_single("a reading by itself")
        reading = await super().read(at, window, timeout=timeout)
        plan = self._plans.get(reading.sequence)
        if plan is None:
            raise ReadInPast(
                f"the state read is that of program {reading.sequence}, whose operator is not known here (any more)",
                field="sequence",
                found=reading.sequence,
                expected=f"one of the last {KNOWN_PLANS} programs of this session",
            )
        return await self.solution(plan, reading, [reading.value])

    async def advance(self, duration: float, *, timeout: float | None = None) -> float:
        """Move the stepped clocks of all devices by `duration` τ; the new time of the first."""
        return (await asyncio.gather(*(device.session._move(duration, timeout) for device in self.devices)))[0]

    async def reopen(self) -> None:
        """Take all devices again. See `Session.reopen`."""
        self._forget()
        await super().reopen()
        for one in self._beside:
            await one.reopen()

    async def save_state(self, *, timeout: float | None = None) -> bytes:
        """The state of all devices, and of the cells as the next program would be told. See `Session.save_state`."""
        states = [await super().save_state(timeout=timeout)]
        states += [await one.save_state(timeout=timeout) for one in self._beside]
        stream = io.BytesIO()
        saved = {
            "devices": [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states],
            "free_from": [None if d.free_from is None else float(d.free_from) for d in self.devices],
            "state": self._state,
        }
        torch.save(saved, stream)
        return stream.getvalue()

    async def restore_state(self, state: bytes, *, timeout: float | None = None) -> Restored:
        """Let a saved state of as many devices take hold. See `Session.restore_state`."""
        try:
            saved = torch.load(io.BytesIO(state), weights_only=True)
            states = [one.numpy().tobytes() for one in saved["devices"]]
            free_from, cells = saved["free_from"], saved["state"]
        except (UnpicklingError, RuntimeError, LookupError, TypeError, EOFError):
            raise mismatch("state", f"{len(state)} bytes of another kind", "what save_state gave here") from None
        if len(states) != len(self.devices):
            raise mismatch("state", f"that of {len(states)} devices", f"that of {len(self.devices)}")
        self._forget()
        restored = [await super().restore_state(states[0], timeout=timeout)]
        for one, own in zip(self._beside, states[1:], strict=True):
            restored.append(await one.restore_state(own, timeout=timeout))
        for device, before, now in zip(self.devices, free_from, restored, strict=True):
            device.free_from = None if before is None else before + now.shift
        self._state = cells
        return restored[0]

    async def close(self) -> None:
        """Give all devices back."""
        every = (super().close(), *(one.close() for one in self._beside))
        ended = await asyncio.gather(*every, return_exceptions=True)
        self._forget()
        for error in ended:
            if isinstance(error, BaseException):
                raise error

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

    async def embedded(self, operator: Operator) -> Embedded:
        """An operator made ready; of `Kept` what is here.

        Raises:
            OperatorGone: when the operator to be kept is not here any more.
            CapacityExceeded: when the devices are too small.
            InvalidProgram: when the embedding has no map for it.
        """
        if isinstance(operator, Damped):
            operator = operator.operator
        if not isinstance(operator, Operator):
            raise mismatch("operator", type(operator).__name__, "an operator such as spu_link.operators.Rows")
        if isinstance(operator, Kept):
            if self._kept is None or operator.sequence not in self._kept[1]:
                raise OperatorGone(
                    f"the operator of program {operator.sequence} is not here any more; send it again",
                    field="kept.sequence",
                    found=operator.sequence,
                )
            return self._kept[0]
        self.embedding.check(operator, self.capacity.cells)
        return await asyncio.to_thread(self.embedding.embed, operator)

    def start_of(self, program: Program) -> Start:
        """Where a program starts, in parameters."""
        if isinstance(program.start, Tensor):
            return program.start
        if program.start == "drive" or self._state is None or self._state.shape != program.drive.shape:
            return "drive"
        return self._state

    def earliest(self, not_before: float | None) -> list[float | None]:
        """Earliest times on all devices: as long after its last program on each, as `not_before` is on the first."""
        first, others = self.devices[0].free_from, self.devices[1:]
        if not_before is None or first is None:
            return [not_before, *(None for _ in others)]
        delay = max(0.0, not_before - first)
        return [not_before, *(None if one.free_from is None else one.free_from + delay for one in others)]

    def took_hold(self, embedded: Embedded, applied: Applied, plan: Plan) -> None:
        """The last program of a plan has taken hold."""
        if self._kept is None or self._kept[0] is not embedded:
            self._kept = embedded, set()
        self._kept[1].add(applied.sequence)
        self._plans[applied.sequence] = plan
        while len(self._plans) > KNOWN_PLANS:
            self._plans.popitem(last=False)

    async def solution(self, plan: Plan, reading: Reading, values: Sequence[Tensor]) -> Reading:
        """The reading of g̃ from those of all parts; `reading` says when."""

        def mapped() -> tuple[Tensor, Tensor]:
            value = plan.solution(values)
            return value, self.embedding.state_after(plan.start.to(value), value, plan.damping * reading.age)

        value, self._state = await asyncio.to_thread(mapped)
        return replace(reading, value=value)

    def _upload(self, operator: Operator, precision: Precision | None) -> Upload:
        return EmbeddedUpload(self, operator, precision)

    def _forget(self) -> None:
        """Nothing is known of what the devices hold."""
        self._state = self._kept = None
        self._plans.clear()
        for device in self.devices:
            device.forget()
