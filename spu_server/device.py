"""The device: owner of a driver, keeper of event order, sequence and session."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
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
    mismatch,
)
from spu_link.program import Applied, Reading, Restored, non_negative
from spu_server.agenda import Agenda
from spu_server.clock import Clock, SteppedClock
from spu_server.drivers.base import Capabilities
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.port import DriverPort
from spu_server.drivers.saved import Standing
from spu_server.lifecycle import Event, State, following
from spu_server.sessions import SessionKey, Sessions

STATE_OVERHEAD = 1 << 20
"""Bytes of a saved state that do not grow with the program."""

P = TypeVar("P")


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
        state: its state; see `lifecycle`.
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
        self._window_numbers = itertools.count()
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
        problem = await self._port.call(CheckedDriver.self_test)
        if problem:
            name = self.capabilities.name
            raise DeviceFault(f"driver {name}: the device's self-test found: {problem}", field="driver", found=name)
        if calibrate:
            await self._port.call(CheckedDriver.calibrate)
            self.calibrated = self.clock.now()

    def open_session(self, holder: str, ttl: float) -> SessionKey:
        """Take the device exclusively, clearing a halt, and a fault that a restart has ended.

        Raises:
            DeviceFault: while the driver does not work.
            DeviceBusy: while another session lives.
        """
        self._check_fault()
        key = self.sessions.open(holder, ttl)
        self._fail_pending(key.fencing)
        self.state = following(self.state, Event.SESSION)
        self.fault = ""
        return key

    def close_session(self, key: SessionKey) -> None:
        """Give the device back; the cells go on under the last program."""
        if self.sessions.close(key):
            self._fail_pending(key.fencing)

    def _fail_pending(self, fencing: int) -> None:
        """Fail the pending events of session `fencing`, which has ended: they must not hold up the next one."""
        self._agenda.fail_pending(
            SessionExpired(
                "the session ended while the call was waiting; open a new one",
                field="session",
                found=fencing,
                expected="a living session",
            )
        )

    def check(self, key: SessionKey) -> None:
        """Admit a call of a session.

        Raises:
            SpuError: for a session that may not, or while the driver does not work.
        """
        self.sessions.check(key)
        self._check_fault()

    def admit(self, key: SessionKey) -> wire.Limits:
        """Admit an upload of a session; return what its program may ask for.

        Raises:
            SpuError: as `check`.
        """
        self.check(key)
        able = self.capabilities
        return {"cells": able.cells, "max_bytes": able.max_bytes, "features": self.features}

    async def program(self, key: SessionKey, program: wire.Layout, payload: P) -> Programmed:
        """Stage a program, apply it at one instant, and schedule its readings from there.

        Args:
            key: the session's.
            program: what its header says; the device can do all of it.
            payload: the bytes of its tensors.

        Raises:
            InvalidProgram: when a value is not what it must be; the old program goes on.
            OperatorGone: when it keeps an operator that is not the device's any more; the old program goes on.
            SpuError: when the session ended meanwhile, or the driver failed.
        """
        async with self._uploading:
            self._check_kept(program.kept)
            await self._port.stage(program.header, payload)
            at = program.not_before if program.not_before > self.clock.now() else None
            return await self._agenda.schedule(at, lambda time: self._commit_program(key, program, time))

    async def _commit_program(self, key: SessionKey, program: wire.Layout, at: float) -> Programmed:
        self.sessions.check(key)
        # Again: a program given up by its client may have taken effect since the staging.
        self._check_kept(program.kept)
        await self._port.call(CheckedDriver.commit, at)
        self._last_event = at
        self._applied = Applied(self._applied.sequence + 1, at, self.epoch)
        if program.kept is None:
            self._operator_since = self._applied.sequence
        self.state = following(self.state, Event.COMMIT)
        self.sessions.check(key)  # a halt or the next session may have come while the driver was at work
        readings = [self._schedule_read(key, at + after, window) for after, window in program.reads]
        return Programmed(self._applied, readings)

    def _check_kept(self, kept: int | None) -> None:
        """Check that the device still holds the operator of program `kept`; None: the program brings its own."""
        running = self.state is State.RUNNING
        if kept is None or (running and self._operator_since <= kept <= self.sequence):
            return
        now = f"{self._operator_since} to {self.sequence}" if running else "none"
        raise OperatorGone(
            f"the operator of program {kept} is not the device's; it holds that of programs {now}. "
            f"Nothing has changed; send the operator",
            field="kept.sequence",
            found=kept,
            expected=now,
        )

    async def advance(self, key: SessionKey, duration: float) -> float:
        """Move a stepped clock by `duration` τ, running every event on the way; return the new device time.

        Raises:
            ClockMismatch: on a free-running clock.
        """
        self.sessions.check(key)
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

    async def save(self, key: SessionKey) -> P:
        """Return the whole state now, as bytes that belong to the caller. The cells do not move.

        Raises:
            Unsupported: when the driver cannot.
        """
        self._check_state_ability(key)
        return await self._agenda.schedule(None, lambda time: self._save(key, time))

    async def _save(self, key: SessionKey, at: float) -> P:
        self.sessions.check(key)
        standing = Standing(
            time=at,
            running=self.state is State.RUNNING,
            sequence=self.sequence,
            operator_since=self._operator_since,
            began=float(self._applied.time),
            last_event=self._last_event,
        )
        return await self._port.save(at, standing)

    async def restore(self, key: SessionKey, payload: P) -> Restored:
        """Apply a saved state, at the time it was saved at if a stepped clock has not passed that, else now.

        On the way to that time a stepped clock runs every event. Readings still to come are of the restored state.

        Raises:
            Unsupported: when the driver cannot.
            InvalidProgram: when it is no state of this driver; the device stays as it is.
        """
        async with self._uploading:
            self._check_state_ability(key)
            standing = await self._port.restore(payload)
            at = None
            if isinstance(self.clock, SteppedClock) and standing.time > self.clock.now():
                at = standing.time
                self.clock.move_to(at)
            return await self._agenda.schedule(at, lambda time: self._commit_state(key, standing, time))

    async def _commit_state(self, key: SessionKey, standing: Standing, at: float) -> Restored:
        self.sessions.check(key)
        await self._port.call(CheckedDriver.commit, at)
        shift = at - standing.time
        fresh = self.sequence == 0  # then its numbers go on too, and programs may keep the operator by those they know
        self._last_event = max(0.0, standing.last_event + shift)
        if standing.running:
            sequence = standing.sequence if fresh else self.sequence + 1
            self._operator_since = standing.operator_since if fresh else sequence
            self._applied = Applied(sequence, standing.began + shift, self.epoch)
        self.state = following(self.state, Event.COMMIT if standing.running else Event.EMPTY)
        self.sessions.check(key)
        return Restored(at, shift, self.sequence if standing.running else 0, self.epoch)

    def check_restore(self, key: SessionKey, nbytes: int) -> None:
        """Check the size of a saved state before anything is reserved for it.

        Raises:
            SpuError: for a session that may not, a driver that cannot, or a size that is not a state's.
        """
        self._check_state_ability(key)
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

    def _check_state_ability(self, key: SessionKey) -> None:
        self.check(key)
        if "state" not in self.capabilities.features:
            raise Unsupported(
                f"driver {self.capabilities.name} can neither save nor restore its state",
                field="driver",
                found=self.capabilities.name,
                expected='a driver with the feature "state"',
            )

    async def read(self, key: SessionKey, at: float | None, window: float) -> Reading:
        """Take one reading.

        Args:
            key: the session's.
            at: device time to wait for, in τ; None for now.
            window: average over the last `window` τ; 0 for the state itself.

        Raises:
            ReadInPast: when the state asked for is gone.
            NoProgram: before the first program has taken effect.
        """
        self.check(key)
        window = non_negative("window", window)
        now = self.clock.now()
        if at is None:
            at = now
        elif not math.isfinite(at):
            raise mismatch("at", at, "a device time in τ")
        rounding = 1e-9 * max(1.0, now)  # a client's sum of steps differs from `now` in the last digits, and means it
        if at < now - rounding or at - window < self._last_event - rounding:
            reach = f" with a window of {window} τ" if window else ""
            raise ReadInPast(
                f"a reading at device time {at} τ{reach} lies in the past: it is {now} τ now, and nothing is kept from "
                f"before the last event, at {self._last_event} τ. {self._advice(window)}",
                field="at",
                found=at,
                expected=f"at least {max(now, self._last_event + window)}",
            )
        at = max(at, self._last_event + window)
        return await self._schedule_read(key, at, window)

    def _advice(self, window: float) -> str:
        """Return what to do instead of asking for a reading in the past."""
        if self.clock.kind == "stepped":
            return "Ask for it before the clock is advanced that far, or leave out `at` to read now" + (
                f", at least {window} τ after the last event" if window else ""
            )
        return (
            f"Device time goes on by itself, {self.clock.rate:,.9g} τ a second: to read a program after a given analog "
            "time, upload both at once with session.solve(..., analog_time=...); to read now, leave out `at`; to have "
            "more time, slow the clock down with `spu-server serve --rate`"
        )

    def _schedule_read(self, key: SessionKey, at: float, window: float) -> asyncio.Future[Reading]:
        number = next(self._window_numbers)
        opening = self._schedule_window(number, at - window) if window else None

        async def measure(at: float) -> Reading:
            self.sessions.check(key)
            if opening:
                opening.result()  # raises what stood in the window's way
            return await self._measure(at, window, number if opening else None)

        reading = self._agenda.schedule(at, measure)
        if opening:
            reading.add_done_callback(lambda reading: self._abandon_window(reading, number, opening))
        return reading

    def _schedule_window(self, number: int, start: float) -> asyncio.Future[None]:
        async def open_window(start: float) -> None:
            # (2.4 + 1.2) − 1.2 is less than 2.4, where the last event may have been: it has been checked but for that.
            start = max(start, self._last_event)
            await self._port.call(CheckedDriver.open_window, number, start)
            self._last_event = start

        return self._agenda.schedule(start, open_window)

    def _abandon_window(self, reading: asyncio.Future[Reading], number: int, opening: asyncio.Future[None]) -> None:
        """Close the window of a reading that will not be taken: the driver must not go on averaging for ever."""
        if not reading.cancelled() and reading.exception() is None:
            return
        if opening.done() and not opening.cancelled():
            opening.exception()  # raised for the reading's waiter
        opening.cancel()
        if self.state is State.RUNNING:
            # The driver may be opening it at this moment; its calls run in the order they are made.
            closing = asyncio.get_running_loop().create_task(self._close_window(number))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close_window(self, number: int) -> None:
        with suppress(SpuError):
            await self._port.call(CheckedDriver.close_window, number)

    async def _measure(self, at: float, window: float, number: int | None) -> Reading:
        if self.state is not State.RUNNING:
            raise NoProgram("nothing has taken effect on this device; program it first", field="program", found="none")
        applied = self._applied
        value, taken = await self._port.read(at, number)
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
        return dict(await self._port.call(CheckedDriver.report))

    async def halt(self, reason: str) -> float:
        """Stop at once: pending events fail, the session ends, the cells are discharged. Return the device time."""
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
            await self._port.halt(max(at, self._last_event))
        self._last_event = max(at, self._last_event)
        return at

    def _check_fault(self) -> None:
        if self.state in (State.FAULT, State.RESTARTING):
            now = self.state.value
            raise DeviceFault(self.fault, field="driver", found=now, expected="a working driver")

    def fail(self, error: DeviceFault) -> None:
        """Note that the driver has failed: with it all that waits for it, and the session. The first reason stays."""
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
        """Note that the driver is about to be started again."""
        self.state = following(self.state, Event.RESTART)

    def note_restart(self, capabilities: Capabilities) -> None:
        """Note that the driver has opened the device again: nothing is in force, and the next session may use it."""
        self.state = following(self.state, Event.OPENED)
        self.capabilities = capabilities
        self.restarts += 1
        self._port.note_restart()

    async def close(self) -> None:
        """Stop the agenda. The driver belongs to whoever opened it."""
        await self._agenda.close()
