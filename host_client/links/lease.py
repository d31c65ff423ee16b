"""Exclusive use of a device, as a link gives it, and programs on their way there."""

from __future__ import annotations

import asyncio
import math
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Self, TypedDict, Unpack

from host_client.capacity import Capacity, Info
from host_client.clock import ClockAgreement, Exchange
from host_client.embeddings.fitting import advice
from host_client.links.base import Link, Path, seconds_left, until
from spu_link.device_time import DeviceTime
from spu_link.errors import CapacityExceeded, ProtocolError, SessionClosed
from spu_link.operators import Kept, Operator
from spu_link.operators.base import ArrayLike
from spu_link.precision import Precision
from spu_link.program import Applied, Program, Reading, ReadPlan, Restored, Schedule, StartPolicy

EXCHANGES = 4
"""Questions after the device's time when a lease begins; each heartbeat asks once more."""

LONGEST_WAIT = 1e8
"""Max wait that a call is given for device time to come, in seconds: three years."""


class Lease(ABC):
    """Exclusive use of a device, and what the client knows of it while that lasts.

    Args:
        link: the way to the device.
        info: description of the device when it was taken.
        epoch: run of the daemon.
        fencing: number of the lease.
        bytes_by_path: counts bytes of tensors uploaded, by path.

    Attributes:
        link, info, epoch, fencing, bytes_by_path: as given.
        closed: whether the session has been closed in this process.
        free_from: device time at which the last program has run its schedule, in τ; None before the first.
        clock: agreement of the host's clock with device time.
        upload_type: class of its uploads.
    """

    clock: ClockAgreement
    upload_type: Callable[..., Upload]

    def __init__(self, link: Link, info: Info, epoch: int, fencing: int, bytes_by_path: Counter[str]) -> None:
        self.link, self.info, self.epoch, self.bytes_by_path = link, info, epoch, bytes_by_path
        self.closed = False
        self.fencing = fencing
        self.free_from: float | None = None
        self._device_time = DeviceTime(0.0, epoch)
        self._held: tuple[weakref.ref[Operator], int] | None = None  # operator and sequence of the last program

    @property
    def device_time(self) -> DeviceTime:
        """Newest device time known from the device's answers, in τ."""
        return self._device_time

    @property
    def stepped(self) -> bool:
        """True if device time moves by `advance` alone."""
        return self.info.clock == "stepped"

    @property
    def capacity(self) -> Capacity:
        """Capacity of the device."""
        here = self.link.address.startswith(("unix:", "inproc:"))
        return Capacity(self.info.max_upload_bytes, self.info.cells, here)

    @property
    def keeps(self) -> bool:
        """True if an operator that has been sent may be named by `Kept` for the next drives."""
        return Kept.kind in self.info.features

    @property
    def copies_at_once(self) -> bool:
        """True if an operator that goes ahead is copied at once, however slow the way to the device."""
        return True

    def mark_closed(self) -> None:
        """Note that the session has been closed in this process."""
        self.closed = True

    def check(self) -> None:
        """Refuse to be used after the session has been closed; for a closed connection the link raises.

        Raises:
            SessionClosed: naming the address.
        """
        if self.closed and not self.link.closed:
            raise SessionClosed(
                f"this session on {self.link.address} was closed in this process; open a new one with spu.session()",
                field="session",
                found=self.fencing,
                expected="a session that is open",
            )

    def note_effect(self, operator: weakref.ref[Operator] | None, sequence: int, free_from: float) -> None:
        """Note the program that is in effect: its operator, its number, and when it will have run its schedule."""
        self._held = None if operator is None else (operator, sequence)
        self.free_from = free_from

    def forget_operator(self) -> None:
        """Note that another program is on its way: the device holds the old operator, or the new one."""
        self._held = None

    def forget(self) -> None:
        """Forget what the device holds."""
        self._held = self.free_from = None

    def check_epoch(self, field: str, at: float | None) -> None:
        """Refuse a device time of another run of the daemon.

        Raises:
            EpochMismatch: naming the field.
        """
        if isinstance(at, DeviceTime):
            at.check(self.epoch, field)

    def check_size(self, operator: Operator) -> None:
        """Refuse an operator with more parameters than the device has cells.

        Raises:
            CapacityExceeded: saying which embedding would do.
        """
        cells = self.capacity.cells
        if operator.parameters > cells:
            raise CapacityExceeded(
                f"the program needs {operator.parameters} cells, the device has {cells}; {advice(operator, cells)}",
                field="cells",
                found=operator.parameters,
                expected=f"at most {cells}",
            )

    async def agree(self, deadline: float) -> None:
        """Compare clocks; `deadline` is in seconds of the loop's clock."""

        async def ask() -> Exchange:
            return await self.link.time(timeout=seconds_left(deadline))

        self.clock = ClockAgreement(await ask())
        for _ in range(EXCHANGES - 1):
            self.clock.add(await ask())

    def learn(self, time: float) -> DeviceTime:
        """Take a time into account that the device has sent."""
        known = time if isinstance(time, DeviceTime) else DeviceTime(time, self.epoch)
        if known.epoch == self.epoch:
            self._device_time = max(self._device_time, known)
            self.clock.advance_to(known)
        return known

    def seconds_until(self, at: float | None) -> float:
        """Return the wall time that the device's own evolution may take at most until device time `at`."""
        if at is None or self.info.rate == 0 or not math.isfinite(at):
            return 0.0  # the device refuses a time that is not finite
        return min(max(0.0, at - self.device_time) / self.info.rate, LONGEST_WAIT)

    def upload(
        self,
        operator: Operator,
        precision: Precision | None = None,
        *,
        known_as: weakref.ref[Operator] | None = None,
        unchanged: bool = False,
    ) -> Upload:
        """Return a program on its way to the device; nothing is sent yet.

        Args:
            operator: F.
            precision: how its values travel.
            known_as: the object that it is a copy of, to know it again; None for `operator` itself.
            unchanged: whether the object's tensors are as they were when they were sent: where the device holds it, a
                reference travels in its place.
        """
        if unchanged:
            given = operator if known_as is None else known_as()
            if given is not None and (reference := self._reference(given)) is not None:
                operator, known_as = reference, weakref.ref(given)
        return self.upload_type(self, operator, precision, known_as)

    async def advance(self, duration: float, *, timeout: float) -> DeviceTime:
        """Move a stepped clock by `duration` τ; return the new device time."""
        return self.learn(await self._advance(duration, timeout=timeout))

    async def read(self, at: float | None, window: float, *, timeout: float) -> Reading:
        """Take one reading."""
        reading = await self._read(at, window, timeout=timeout)
        self.learn(reading.time)
        return reading

    async def restore_state(self, state: bytes, *, timeout: float) -> Restored:
        """Put a saved state into effect."""
        self.forget()
        restored = await self._restore_state(state, timeout=timeout)
        self.learn(restored.time)
        return restored

    def _reference(self, operator: Operator) -> Kept | None:
        """Return what travels in place of an operator that the device holds; None for another one."""
        if self._held is None or not self.keeps:
            return None
        held, sequence = self._held
        return Kept(sequence, operator.parameters) if held() is operator else None

    @abstractmethod
    async def save_state(self, *, timeout: float) -> bytes:
        """Return the device's whole state."""

    @abstractmethod
    async def renew(self, *, timeout: float) -> None:
        """Keep the device: a heartbeat."""

    @abstractmethod
    async def release(self, *, timeout: float) -> None:
        """Give the device back; no error where the lease has ended."""

    @abstractmethod
    async def _advance(self, duration: float, *, timeout: float) -> float: ...

    @abstractmethod
    async def _read(self, at: float | None, window: float, *, timeout: float) -> Reading: ...

    @abstractmethod
    async def _restore_state(self, state: bytes, *, timeout: float) -> Restored: ...


class Terms(TypedDict, total=False):
    """Terms of a program in addition to operator, drive and schedule, as of `Session.program`."""

    damping: float
    noise: float
    start: StartPolicy | ArrayLike


class Upload(ABC):
    """A program on its way to the device: the operator first, then the rest. Made by `Session.upload`.

    One call of `program`, `solve`, `run` or `abandon` ends it.

    Attributes:
        operator: F.
    """

    _path: Path | None = None
    _sent_bytes = 0
    _beginning: asyncio.Task[None] | None = None
    _over = False

    def __init__(
        self,
        lease: Lease,
        operator: Operator,
        precision: Precision | None,
        known_as: weakref.ref[Operator] | None,
    ) -> None:
        self.operator = operator
        self._given = known_as
        self._lease = lease
        self._precision = precision

    @property
    def sent_bytes(self) -> int:
        """Bytes of tensors that have left so far."""
        return self._sent_bytes

    @property
    def path(self) -> Path | None:
        """Path of its bytes; None before the first of them."""
        return self._path if self._sent_bytes else None

    def begin(self) -> None:
        """Send the operator ahead, if anything of it travels."""
        if isinstance(self.operator, Operator) and self.operator.nbytes:
            self._go_ahead()

    def _go_ahead(self) -> None:
        """Start `_send_ahead`. Its error is that of the next call; of an upload that is dropped, nobody's."""
        self._beginning = asyncio.create_task(self._send_ahead())
        self._beginning.add_done_callback(lambda task: None if task.cancelled() else task.exception())

    async def begun(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds until `begin` has sent the operator, or failed; the next call raises that."""
        if self._beginning is not None:
            await asyncio.wait([self._beginning], timeout=timeout)

    async def program(
        self,
        drive: ArrayLike,
        *,
        not_before: float | None = None,
        timeout: float | None = None,
        **terms: Unpack[Terms],
    ) -> Applied:
        """Send the rest; returns when the program has taken effect. Arguments and errors as of `Session.program`."""
        program = await self._program(drive, Schedule(not_before=not_before), terms)
        (applied,) = [event async for event in self.run(program, timeout=timeout)]
        assert isinstance(applied, Applied)
        return applied

    async def solve(
        self,
        drive: ArrayLike,
        *,
        analog_time: float,
        window: float = 0.0,
        not_before: float | None = None,
        timeout: float | None = None,
        **terms: Unpack[Terms],
    ) -> Reading:
        """Send the rest, let the device evolve, and read it. Arguments and errors as of `Session.solve`."""
        schedule = Schedule((ReadPlan(analog_time, window),), analog_time, not_before)
        async with aclosing(self.run(await self._program(drive, schedule, terms), timeout=timeout)) as events:
            await anext(events)
            reading = await anext(events)
        assert isinstance(reading, Reading)
        return reading

    async def run(self, program: Program, *, timeout: float | None = None) -> AsyncGenerator[Applied | Reading, None]:
        """Send the rest, and yield what comes back as it comes: when the program took effect, then each reading.

        Args:
            program: under `operator`, in the precision of the upload.
            timeout: as of `Session.program`.
        """
        if self._over:
            raise ProtocolError("this upload is over; begin another one", field="upload", found="over")
        try:
            self._lease.check()
            self._lease.check_epoch("not_before", program.schedule.not_before)
            async with aclosing(self._run(program, timeout)) as events:
                async for event in events:
                    yield event
        finally:
            self._over = True
            await self._end()

    async def abandon(self) -> None:
        """Break off, unless it is over. Nothing is left behind, and the old program goes on."""
        if self._over:
            return
        self._over = True
        await self._end()

    async def __aenter__(self) -> Self:
        """The upload itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Abandon what has not been finished."""
        await self.abandon()

    async def _program(self, drive: ArrayLike, schedule: Schedule, terms: Terms) -> Program:
        """Return the program, checked; the upload of one that is refused is over."""
        try:
            return Program(self.operator, drive, precision=self._precision, schedule=schedule, **terms)  # type: ignore[arg-type]
        except BaseException:
            await self.abandon()
            raise

    def _known_as(self) -> weakref.ref[Operator]:
        return weakref.ref(self.operator) if self._given is None else self._given

    async def _end(self) -> None:
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        await self._release()

    @abstractmethod
    def _run(self, program: Program, timeout: float | None) -> AsyncGenerator[Applied | Reading, None]:
        """Send the rest of a program, and give what comes back; arguments as of `run`."""

    @abstractmethod
    async def _send_ahead(self) -> None:
        """Send the operator; waits without a deadline."""

    @abstractmethod
    async def _release(self) -> None:
        """Release what belongs to the upload, also after a `_send_ahead` that has failed, and more than once."""


class SingleUpload(Upload):
    """A program on its way to one device, which is a program there."""

    async def _run(self, program: Program, timeout: float | None) -> AsyncGenerator[Applied | Reading, None]:
        lease, schedule = self._lease, program.schedule
        lease.check_size(program.operator)
        deadline = self._deadline(schedule, timeout)
        moved, not_before = schedule.length if lease.stepped else None, schedule.not_before
        # More than once where a sum has been rounded down: each time goes on by at least the last digit.
        while moved is not None and not_before is not None and not_before > lease.device_time:
            await lease.advance(not_before - lease.device_time, timeout=seconds_left(deadline))
        if self._beginning is not None:
            await until(deadline, "program", self._beginning)
        lease.forget_operator()  # until the program is known to have taken effect
        async with aclosing(self._send_rest(program, timeout=seconds_left(deadline))) as events:
            self._over = True
            async for event in events:
                lease.learn(event.time)
                if isinstance(event, Applied):
                    assert self._path is not None
                    lease.bytes_by_path[self._path] += self._sent_bytes
                    lease.note_effect(self._known_as(), event.sequence, event.time + (schedule.length or 0.0))
                yield event
                if isinstance(event, Applied) and moved is not None:
                    await lease.advance(moved, timeout=seconds_left(deadline))

    def _deadline(self, schedule: Schedule, timeout: float | None) -> float:
        """Return when everything must be over, in seconds of the loop's clock."""
        lease = self._lease
        if timeout is None:
            last = max((read.after for read in schedule.reads), default=0.0)
            timeout = lease.link.timeout + lease.seconds_until((schedule.not_before or lease.device_time) + last)
        return asyncio.get_running_loop().time() + timeout

    @abstractmethod
    def _send_rest(self, program: Program, *, timeout: float) -> AsyncGenerator[Applied | Reading, None]:
        """Send the rest of a program; give when it took effect, then each reading, in time order."""
