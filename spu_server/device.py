"""The device: owner of a driver, keeper of event order, sequence and session."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from spu_link import wire
from spu_link.errors import (
    CapacityExceeded,
    ClockMismatch,
    DeviceFault,
    DeviceHalted,
    NoProgram,
    OperatorGone,
    ReadInPast,
    SessionExpired,
    SpuError,
    Unsupported,
)
from spu_link.operators.base import mismatch
from spu_link.program import Applied, Reading, Restored, non_negative
from spu_server.agenda import Agenda
from spu_server.clock import Clock, SteppedClock
from spu_server.drivers.base import Capabilities
from spu_server.drivers.port import DriverPort
from spu_server.lifecycle import Event, State, following
from spu_server.saved import Standing
from spu_server.sessions import Sessions
from tngd.spu.v1 import spu_pb2 as pb

STATE_OVERHEAD = 1 << 20
"""Bytes of a saved state that do not grow with the program."""

P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Programmed:
    """A program that has taken effect, and the readings scheduled with it, in the order of their times."""

    applied: Applied
    readings: Sequence[asyncio.Future[Reading]]


class Device(Generic[P]):
    """One device behind one driver. All methods are called on the event loop that it was made on.

    Args:
        port: the driver.
        capabilities: what the driver can do.
        clock: what moves device time.
        tau: time constant in seconds.
        epoch: identity of this run; times of two epochs never compare.

    Attributes:
        state: what it is doing; see `lifecycle`.
        fault: why the driver failed; stays until a session is opened after the restart. Else empty.
        restarts: how often the driver has been restarted.
        readings: readings taken so far.
        calibrated: device time at which it was calibrated after its driver was opened last; None: it was not.
        on_fault: called when the driver has failed.
    """

    def __init__(self, port: DriverPort[P], capabilities: Capabilities, clock: Clock, tau: float, epoch: int) -> None:
        self.capabilities = capabilities
        self.clock = clock
        self.tau = tau
        self.epoch = epoch
        self.sessions = Sessions(self.epoch)
        self.state = following(State.STARTING, Event.OPENED)
        self.fault = ""
        self.restarts = 0
        self.readings = 0
        self.calibrated: float | None = None
        self.on_fault: Callable[[], None] = lambda: None
        self._port = port
        self._port.on_fault = self.fail
        self._agenda = Agenda(clock)
        self._uploading = asyncio.Lock()
        self._applied = Applied(sequence=0, time=0.0, epoch=self.epoch)
        self._operator_since = 0  # number of the first of the programs in a row that run under the operator in force
        self._last_event = 0.0
        self._windows = itertools.count()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def sequence(self) -> int:
        """Number of the program in force; 0 before the first."""
        return self._applied.sequence

    @property
    def features(self) -> tuple[str, ...]:
        """Optional abilities: the driver's, and those that every driver has."""
        return (*self.capabilities.features, "kept")

    async def examine(self, *, calibrate: bool) -> None:
        """Let the device, which has just been opened and is idle, look at itself and, if wanted, calibrate itself.

        Raises:
            DeviceFault: when it finds something, or cannot be made good; in its own words.
        """
        self.calibrated = None
        found = await self._port.self_test()
        if found:
            name = self.capabilities.name
            raise DeviceFault(f"driver {name}: the device's self-test found: {found}", field="driver", found=name)
        if calibrate:
            await self._port.calibrate()
            self.calibrated = self.clock.now()

    def open_session(self, holder: str, ttl: float) -> pb.SessionRef:
        """Take the device exclusively, clearing a halt, and a fault that a restart has ended.

        Raises:
            DeviceFault: while the driver does not work.
            DeviceBusy: while another session lives.
        """
        self._check_fault()
        ref = self.sessions.open(holder, ttl)
        self._fail_former(ref.fencing)
        self.state = following(self.state, Event.SESSION)
        self.fault = ""
        return ref

    def close_session(self, ref: pb.SessionRef) -> None:
        """Give the device back; the cells go on under the last program."""
        if self.sessions.close(ref):
            self._fail_former(ref.fencing)

    def _fail_former(self, fencing: int) -> None:
        """Whatever still waits belongs to a session that has ended, and must not hold up the next one."""
        self._agenda.fail_pending(
            SessionExpired(
                "the session ended while the call was waiting; open a new one",
                field="session",
                found=fencing,
                expected="a living session",
            )
        )

    def admit(self, ref: pb.SessionRef, header: pb.ProgramHeader) -> wire.Layout:
        """Check a header before anything is reserved for it.

        Raises:
            SpuError: for a session that may not, or a header that is not what it must be.
        """
        self.sessions.check(ref)
        self._check_fault()
        layout = wire.layout(header, cells=self.capabilities.cells, max_bytes=self.capabilities.max_bytes)
        wire.check_features(header, self.features)
        return layout

    async def program(self, ref: pb.SessionRef, header: pb.ProgramHeader, payload: P) -> Programmed:
        """Stage an admitted program, apply it at one instant, and schedule its readings from there.

        Raises:
            InvalidProgram: when a value is not what it must be; the old program goes on.
            OperatorGone: when it keeps an operator that is not the device's any more; the old program goes on.
            SpuError: when the session ended meanwhile, or the driver failed.
        """
        async with self._uploading:
            self._check_kept(header)
            await self._faulting(self._port.stage(header, payload))
            not_before = header.not_before if header.HasField("not_before") else 0.0
            at = not_before if not_before > self.clock.now() else None
            return await self._agenda.schedule(at, lambda time: self._apply(ref, header, time))

    async def _apply(self, ref: pb.SessionRef, header: pb.ProgramHeader, at: float) -> Programmed:
        self.sessions.check(ref)
        self._check_kept(header)  # again: a program given up by its client may have taken effect since the staging
        await self._faulting(self._port.commit(at))
        self._last_event = at
        self._applied = Applied(self._applied.sequence + 1, at, self.epoch)
        if not wire.kept_of(header):
            self._operator_since = self._applied.sequence
        self.state = following(self.state, Event.COMMIT)
        self.sessions.check(ref)  # a halt or the next session may have come while the driver was at work
        reads = sorted(header.reads, key=lambda read: read.after)
        return Programmed(self._applied, [self._schedule_read(ref, at + read.after, read.window) for read in reads])

    def _check_kept(self, header: pb.ProgramHeader) -> None:
        kept = wire.kept_of(header)
        if kept is None:
            return
        now = f"{self._operator_since} to {self.sequence}" if self.state is State.RUNNING else "none"
        if self.state is not State.RUNNING or not self._operator_since <= kept.sequence <= self.sequence:
            raise OperatorGone(
                f"the operator of program {kept.sequence} is not the device's; it holds that of programs {now}. "
                f"Nothing has changed; send the operator",
                field="kept.sequence",
                found=kept.sequence,
                expected=now,
            )

    async def advance(self, ref: pb.SessionRef, duration: float) -> float:
        """Move a stepped clock, running every event on the way; the new device time.

        Raises:
            ClockMismatch: on a free-running clock.
        """
        self.sessions.check(ref)
        if not isinstance(self.clock, SteppedClock):
            raise ClockMismatch(
                "advance moves a stepped clock; this device's clock runs by itself: read(at=…) waits for a device time",
                field="clock",
                found=self.clock.kind,
                expected="stepped",
            )

        async def arrive(at: float) -> float:
            return at

        return await self._agenda.schedule(self.clock.move(non_negative("duration", duration)), arrive)

    async def save(self, ref: pb.SessionRef) -> P:
        """The whole state now, as bytes that belong to the caller. It moves nothing.

        Raises:
            Unsupported: when the driver cannot.
        """
        self.sessions.check(ref)
        self._check_state_ability()

        async def save(at: float) -> P:
            self.sessions.check(ref)
            standing = Standing(
                time=at,
                running=self.state is State.RUNNING,
                sequence=self.sequence,
                operator_since=self._operator_since,
                began=float(self._applied.time),
                last_event=self._last_event,
            )
            return await self._faulting(self._port.save(at, standing))

        return await self._agenda.schedule(None, save)

    async def restore(self, ref: pb.SessionRef, payload: P) -> Restored:
        """Apply a saved state, at the time it was saved at if a stepped clock has not passed that, else now.

        On the way to that time a stepped clock runs every event. Readings still to come are of the restored state.

        Raises:
            Unsupported: when the driver cannot.
            InvalidProgram: when it is no state of this driver; the device stays as it is.
        """
        async with self._uploading:
            self.sessions.check(ref)
            self._check_state_ability()
            standing = await self._faulting(self._port.restore(payload))
            at = None
            if isinstance(self.clock, SteppedClock) and standing.time > self.clock.now():
                at = standing.time
                self.clock.move_to(at)
            return await self._agenda.schedule(at, lambda time: self._go_on(ref, standing, time))

    async def _go_on(self, ref: pb.SessionRef, standing: Standing, at: float) -> Restored:
        self.sessions.check(ref)
        await self._faulting(self._port.commit(at))
        shift = at - standing.time
        fresh = self.sequence == 0  # then its numbers go on too, and programs may keep the operator by those they know
        self._last_event = max(0.0, standing.last_event + shift)
        if standing.running:
            sequence = standing.sequence if fresh else self.sequence + 1
            self._operator_since = standing.operator_since if fresh else sequence
            self._applied = Applied(sequence, standing.began + shift, self.epoch)
        self.state = following(self.state, Event.COMMIT if standing.running else Event.EMPTY)
        self.sessions.check(ref)
        return Restored(at, shift, self.sequence if standing.running else 0, self.epoch)

    def check_restore(self, ref: pb.SessionRef, nbytes: int) -> None:
        """Check the size of a saved state before anything is reserved for it.

        Raises:
            SpuError: for a session that may not, a driver that cannot, or a size that is not a state's.
        """
        self.sessions.check(ref)
        self._check_state_ability()
        if not 0 < nbytes <= self.max_state_bytes:
            raise CapacityExceeded(
                f"a state of {nbytes} bytes; this device takes {self.max_state_bytes}",
                field="nbytes",
                found=nbytes,
                expected=f"1 to {self.max_state_bytes}",
            )

    @property
    def max_state_bytes(self) -> int:
        """Max bytes of a saved state: operands that came in 16 bits, state and image have wider numbers there."""
        return 4 * self.capabilities.max_bytes + STATE_OVERHEAD

    def _check_state_ability(self) -> None:
        self._check_fault()
        if "state" not in self.capabilities.features:
            raise Unsupported(
                f"driver {self.capabilities.name} can neither save nor restore its state",
                field="driver",
                found=self.capabilities.name,
                expected='a driver with the feature "state"',
            )

    async def read(self, ref: pb.SessionRef, at: float | None, window: float) -> Reading:
        """Take one reading.

        Args:
            ref: the session.
            at: device time to wait for; None for now.
            window: average over the last `window` τ; 0 for the state itself.

        Raises:
            ReadInPast: when the state asked for is gone.
            NoProgram: before the first program has taken effect.
        """
        self.sessions.check(ref)
        self._check_fault()
        window = non_negative("window", window)
        now = self.clock.now()
        if at is None:
            at = now
        elif not math.isfinite(at):
            raise mismatch("at", at, "a device time in τ")
        # Sums of steps differ from the asked time in the last digits: such a time is now.
        if at < now - 1e-9 * max(1.0, now) or at - window < self._last_event - 1e-9 * max(1.0, now):
            reach = f" with a window of {window} τ" if window else ""
            raise ReadInPast(
                f"a reading at device time {at} τ{reach} lies in the past: it is {now} τ now, and nothing is kept from "
                f"before the last event, at {self._last_event} τ. {self._later(window)}",
                field="at",
                found=at,
                expected=f"at least {max(now, self._last_event + window)}",
            )
        at = max(at, self._last_event + window)
        return await self._schedule_read(ref, at, window)

    def _later(self, window: float) -> str:
        """Return the advice for a reading that is not in the past."""
        if self.clock.kind == "stepped":
            return "Ask for it before the clock is advanced that far, or leave out `at` to read now" + (
                f", at least {window} τ after the last event" if window else ""
            )
        return (
            f"Device time goes on by itself, {self.clock.rate:,.9g} τ a second: to read a program after a given analog "
            "time, upload both at once with session.solve(..., analog_time=...); to read now, leave out `at`; to have "
            "more time, slow the clock down with `spu-server serve --rate`"
        )

    def _schedule_read(self, ref: pb.SessionRef, at: float, window: float) -> asyncio.Future[Reading]:
        number = next(self._windows)
        opened = self._schedule_window(number, at - window) if window else None

        async def measure(at: float) -> Reading:
            self.sessions.check(ref)
            if opened:
                opened.result()  # raises what stood in the window's way
            return await self._measure(at, window, number if opened else None)

        reading = self._agenda.schedule(at, measure)
        if opened:
            reading.add_done_callback(lambda reading: self._abandon_window(reading, number, opened))
        return reading

    def _schedule_window(self, number: int, start: float) -> asyncio.Future[None]:
        async def open_window(start: float) -> None:
            # (2.4 + 1.2) − 1.2 is less than 2.4, where the last event may have been: it has been checked but for that.
            start = max(start, self._last_event)
            await self._faulting(self._port.open_window(number, start))
            self._last_event = start

        return self._agenda.schedule(start, open_window)

    def _abandon_window(self, reading: asyncio.Future[Reading], number: int, opened: asyncio.Future[None]) -> None:
        """A reading that will not be taken must not leave the driver averaging for ever."""
        if not reading.cancelled() and reading.exception() is None:
            return
        if opened.done() and not opened.cancelled():
            opened.exception()  # raised for the reading's waiter
        opened.cancel()
        if self.state is State.RUNNING:
            # The driver may be opening it at this moment; its calls run in the order they are made.
            closing = asyncio.get_running_loop().create_task(self._close_window(number))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close_window(self, number: int) -> None:
        with suppress(SpuError):
            await self._faulting(self._port.close_window(number))

    async def _measure(self, at: float, window: float, opened: int | None) -> Reading:
        if self.state is not State.RUNNING:
            raise NoProgram("nothing has taken effect on this device; program it first", field="program", found="none")
        applied = self._applied
        value, taken = await self._faulting(self._port.read(at, opened))
        self._last_event = at
        self.readings += 1
        age = taken - float(applied.time)
        return Reading(value, taken, applied.sequence, age, window, self.clock.now(), self.epoch)

    async def report(self) -> dict[str, float]:
        """Return counts and measurements since the driver was opened, by name.

        Raises:
            DeviceFault: while the driver does not work.
        """
        self._check_fault()
        return dict(await self._faulting(self._port.report()))

    async def halt(self, reason: str) -> float:
        """Stop at once: pending events fail, the session ends, the cells are discharged; the device time."""
        at = self.clock.now()
        error = DeviceHalted(
            f"the device was halted at {at} τ: {reason or 'no reason given'}; a new session clears it",
            field="state",
            found="halted",
            expected="running",
        )
        self.sessions.revoke(error)
        self._agenda.fail_pending(error)
        self.state = following(self.state, Event.HALT)
        if self.state is State.HALTED:
            await self._faulting(self._port.halt(max(at, self._last_event)))
        self._last_event = max(at, self._last_event)
        return at

    def _check_fault(self) -> None:
        if self.state in (State.FAULT, State.RESTARTING):
            now = self.state.name.lower()
            raise DeviceFault(self.fault, field="driver", found=now, expected="a working driver")

    async def _faulting(self, call: Awaitable[T]) -> T:
        """Await a call of the driver; a fault of it becomes the device's."""
        try:
            return await call
        except DeviceFault as error:
            if self.state is not State.RESTARTING:  # else it is late news of the fault that the restart is for
                self.fail(error)
            raise

    def fail(self, error: DeviceFault) -> None:
        """The driver has failed: so has everything that waits for it, and the session. The first reason stays."""
        if self.state is State.FAULT:
            return
        self.state, self.fault = following(self.state, Event.FAIL), error.message
        self.sessions.revoke(error)
        self._agenda.fail_pending(error)
        self.on_fault()

    def give_up(self, reason: str) -> None:
        """No restart has helped."""
        self.fault = reason

    def restarting(self) -> None:
        """The driver is about to be started again."""
        self.state = following(self.state, Event.RESTART)

    def restarted(self, capabilities: Capabilities) -> None:
        """The driver has opened the device again: nothing is in force, and the next session may use it."""
        self.state = following(self.state, Event.OPENED)
        self.capabilities = capabilities
        self.restarts += 1
        self._port.restarted()

    async def close(self) -> None:
        """Stop the agenda. The driver belongs to whoever opened it."""
        await self._agenda.close()
