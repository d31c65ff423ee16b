"""The reference board: registers over TCP or a serial line. What a hardware team copies.

Cells of a board run by themselves, on the board's clock, and nothing that comes over a line comes at an exact time. So:

* a program takes effect when the command arrives; the board notes the tick, and this tick is the device time that the
  daemon gave to `commit`: the *anchor* of the program;
* readings scheduled with a program are armed on the board before, in ticks after the commit, and are exact to half a
  tick however slow the line is;
* any other reading is taken when its request arrives.

A reading's time is always the true one: the anchor's plus the ticks since then, by the board's own counter.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from spu_link.errors import Clipped, InvalidProgram, NoProgram
from spu_link.program import Program
from spu_server.board import registers as reg
from spu_server.board.host import LinkFailed
from spu_server.board.link import RegisterLink
from spu_server.board.quantise import Bank, bank_of
from spu_server.board.registers import Command, Mode, Register, SlotState
from spu_server.board.transports import connect, serial_addresses
from spu_server.drivers.base import Capabilities, Driver, DriverOptions, Measured

SLACK_SECONDS = 1.0
"""Max lateness of a measurement, compared with the counter's prediction, before the counter counts as failed."""

HALT_SECONDS = 0.08
"""Timeout of a halt on a line without delay, in seconds."""

ANCHORS = 256
"""Programs whose anchors are remembered: readings scheduled before the last so many are lost."""


class BoardError(RuntimeError):
    """The board does not do what its registers promise."""

    remedy: ClassVar[str] = "check the board, its firmware and the line to it"


@dataclass(frozen=True)
class _Anchor:
    """Which tick is which device time, for one program; and how its codes are read."""

    at: float
    tick: int
    bank: Bank


@dataclass(frozen=True)
class _Asked:
    """A measurement that a slot was asked for; `tick` counts from the commit until it has come, and None means now.

    So many `readings` of the same time share it.
    """

    slot: int
    number: int
    tick: int | None
    readings: int = 1


class Board(Driver):
    """A board at ``--driver-option address=tcp:HOST:PORT`` or ``address=serial:PATH[@BAUD]``."""

    def __init__(self, options: DriverOptions) -> None:
        if "address" not in options.settings:
            raise ValueError(
                "the board driver needs its address: --driver-option address=tcp:HOST:PORT, or serial:PATH"
            )
        if options.clock != "free":
            raise ValueError("a board's clock runs by itself; start the daemon with --clock free")
        self._link = RegisterLink(connect(options.settings["address"]))
        try:
            self._link.greet()
            self._delay = self._link.last[1] - self._link.last[0]
            identity = {r: int(v) if r.format in "IQ" else v for r, v in self._link.registers(reg.IDENTITY).items()}
            self._check_identity(identity)
            self._cells = int(min(identity[reg.CELLS], options.cells))
            self._board_cells = int(identity[reg.CELLS])
            self._ticks_per_tau = float(identity[reg.TICKS_PER_TAU])
            self._tick_rate = float(identity[reg.TICK_RATE])
            rate = self._tick_rate / self._ticks_per_tau
            if options.rate is not None and not math.isclose(options.rate, rate, rel_tol=1e-6):
                raise ValueError(
                    f"the board runs at {rate:g} τ a second and cannot run at {options.rate:g}; give --rate {rate:g}"
                )
            self._slots = range(int(identity[reg.SLOTS]))
            self._max_bytes = options.max_bytes
            self._numbers = itertools.count(1)
            self._staged: Bank | None = None
            self._waiting: dict[float, _Asked] = {}
            self._armed: dict[float, _Asked] = {}
            self._anchors: dict[int, _Anchor] = {}
            self._programs = 0
            self._now = 0.0
            self.halt(0.0)
            self._link.announce = self._announce
        except BaseException:
            self._link.close()
            raise

    @classmethod
    def discover(cls) -> list[dict[str, str]]:
        """Boards on serial lines that nobody holds. Every such line is spoken to; one that is silent takes 2 s."""
        return [{"address": address} for address in serial_addresses() if _answers(address)]

    @property
    def capabilities(self) -> Capabilities:
        """Dense programs of few cells; no averages."""
        tau = self._ticks_per_tau / self._tick_rate
        halting = HALT_SECONDS + 4 * self._delay  # behind another request; then the command and its confirmation
        return Capabilities("board", self._cells, self._max_bytes, ("dense",), tau=tau, halt_seconds=halting)

    def stage(self, program: Program) -> None:
        """Write the program to the shadow bank, and see that it arrived as it was sent."""
        running = self._anchors.get(self._programs)
        held = running.bank.scale if running else None
        bank = bank_of(program, self._board_cells, held)
        self._staged = None
        self._disarm_waiting()
        self._link.write(reg.BANK_BASE, bank.data)
        check = int(self._status()[reg.BANK_CHECK])
        if check != bank.check:
            raise BoardError(f"the shadow bank's check is {check:#010x} after a program with {bank.check:#010x}")
        self._staged = bank

    def schedule(self, readings: Sequence[tuple[float, float]]) -> None:
        """Arm a slot for each reading of the staged program."""
        if any(window for _, window in readings):
            self.open_window(0, 0.0)
        free = self._free()[1:]
        if len(readings) > len(free):
            raise InvalidProgram(
                f"{len(readings)} readings are asked for with the program; the board has {len(free)} slots free",
                field="reads",
                found=len(readings),
                expected=f"at most {len(free)}",
            )
        for (after, _), slot in zip(readings, free, strict=False):
            if after in self._waiting:
                shared = self._waiting[after]
                self._waiting[after] = replace(shared, readings=shared.readings + 1)
            else:
                ticks = round(after * self._ticks_per_tau)
                self._waiting[after] = _Asked(slot, self._ask(slot, Mode.AFTER_COMMIT, ticks), ticks)

    def commit(self, at: float) -> None:
        """Apply the shadow bank; its tick becomes device time `at`."""
        if self._staged is None:
            raise NoProgram("no program is staged", field="program")
        self._link.set(reg.COMMAND, Command.COMMIT)
        status = self._status()
        if status[reg.PROGRAMS] != self._programs + 1 or status[reg.STATE] != 1:
            raise BoardError(
                f"after a commit the board counts {status[reg.PROGRAMS]} programs, state {status[reg.STATE]}; "
                f"expected {self._programs + 1}, state 1"
            )
        self._programs += 1
        self._now = at
        self._anchors[self._programs] = _Anchor(at, int(status[reg.COMMIT_TICK]), self._staged)
        if len(self._anchors) > ANCHORS:
            del self._anchors[min(self._anchors)]
        for after, asked in self._waiting.items():
            assert asked.tick is not None
            self._armed[at + after] = replace(asked, tick=int(status[reg.COMMIT_TICK]) + asked.tick)
        self._waiting = {}
        self._staged = None

    def read(self, at: float, window: int | None) -> Measured:
        """The measurement that was armed for `at`, or one taken now; with the time it was really taken.

        Raises:
            Clipped: when a converter was at its end.
        """
        if self._programs not in self._anchors:
            raise NoProgram("no program has taken effect since the board was opened or halted", field="program")
        if window is not None:
            self.open_window(window, at)
        self._now = max(self._now, at)
        asked = self._armed.pop(at, None)
        if asked is not None and asked.readings > 1:
            self._armed[at] = replace(asked, readings=asked.readings - 1)
        if asked is None:
            slot = self._free()[0]
            asked = _Asked(slot, self._ask(slot, Mode.NOW, 0), None)
        return self._fetch(asked)

    def open_window(self, window: int, start: float) -> None:
        """No averages."""
        raise InvalidProgram("this board takes no averages", field="window", expected="0")

    def close_window(self, window: int) -> None:
        """None is open."""

    def halt(self, at: float) -> None:
        """Discharge the cells and forget every program."""
        self._staged = None
        self._waiting, self._armed, self._anchors = {}, {}, {}
        self._link.set(reg.COMMAND, Command.HALT)
        status = self._status()
        if status[reg.STATE] != 0:
            raise BoardError("the board runs on after a halt")
        self._programs = int(status[reg.PROGRAMS])
        self._now = max(self._now, at)

    def clock(self) -> float:
        """The board's counter, in seconds of its nominal rate."""
        return self._status()[reg.TICK] / self._tick_rate

    def self_test(self) -> str:
        """Let the board look at itself.

        Returns:
            What it found; empty if nothing.
        """
        self._link.set(reg.COMMAND, Command.SELF_TEST)
        flags = int(self._status()[reg.SELF_TEST])
        return f"the board's self-test says {flags:#x}" if flags else ""

    def close(self) -> None:
        """Discharge the cells, which nobody looks after any more, and close the line."""
        try:
            self.halt(self._now)
        finally:
            self._link.close()

    def _announce(self, seconds: float) -> None:
        """A call is several requests, each of which may have to be repeated: what is still being asked is no hang."""
        self.announce(seconds)

    def _check_identity(self, identity: dict[Register, float]) -> None:
        if identity[reg.MAGIC_NUMBER] != reg.MAGIC:
            raise BoardError(f"what answers is no SPU board: its magic number is {identity[reg.MAGIC_NUMBER]:#x}")
        if identity[reg.MAP] != reg.MAP_VERSION:
            raise BoardError(
                f"the board has version {identity[reg.MAP]} of the register map; this driver knows {reg.MAP_VERSION}"
            )
        rates = identity[reg.TICK_RATE], identity[reg.TICKS_PER_TAU]
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise BoardError(f"the board states {rates[0]} ticks a second and {rates[1]} ticks in a time constant")
        if not (1 <= identity[reg.CELLS] <= reg.MAX_CELLS and identity[reg.SLOTS] >= 2):
            raise BoardError(f"the board states {identity[reg.CELLS]} cells and {identity[reg.SLOTS]} slots")

    def _status(self) -> dict[Register, float]:
        return self._link.registers(reg.STATUS)

    def _free(self) -> list[int]:
        """Slots that nobody waits for; readings in the past have been cancelled. One is left for readings now."""
        self._armed = {at: armed for at, armed in self._armed.items() if at >= self._now}
        used = {armed.slot for armed in (*self._waiting.values(), *self._armed.values())}
        return [slot for slot in self._slots if slot not in used]

    def _ask(self, slot: int, mode: Mode, ticks: int) -> int:
        number = next(self._numbers) & 0xFFFFFFFF
        self._link.write(reg.slot_address(slot), reg.SLOT_REQUEST.pack(mode, number, ticks))
        return number

    def _disarm_waiting(self) -> None:
        for armed in self._waiting.values():
            self._ask(armed.slot, Mode.OFF, 0)
        self._waiting = {}

    def _fetch(self, asked: _Asked) -> Measured:
        """Fetch a slot's result, waiting for it if it is not there yet."""
        address = reg.slot_address(asked.slot) + reg.SLOT_REQUEST.size
        length = reg.SLOT_RESULT.size + 2 * self._board_cells
        deadline: float | None = None
        while True:
            data = self._link.read(address, length)
            state, number, programs, clipped, tick = reg.SLOT_RESULT.unpack_from(data)
            if number != asked.number:
                raise BoardError(f"slot {asked.slot} holds measurement {number}; it was asked for {asked.number}")
            if state != SlotState.ARMED:
                break
            left = max(0.0, (tick - self._status()[reg.TICK]) / self._tick_rate)
            deadline = time.monotonic() + left + SLACK_SECONDS if deadline is None else deadline
            if time.monotonic() > deadline:
                raise BoardError(f"the board's counter has not come to tick {tick} in time: it does not run")
            time.sleep(min(left, 0.1))
        anchor = self._anchors.get(programs)
        if state != SlotState.DONE or anchor is None:
            raise BoardError(
                f"slot {asked.slot} is in state {state} under program {programs}, of which nothing is known"
            )
        if asked.tick is not None and tick != asked.tick:
            raise BoardError(f"armed for tick {asked.tick}, the board measured at {tick}")
        if clipped:
            raise Clipped(
                f"{clipped} of the board's converters were at their end: the state left ±{anchor.bank.scale:.3g}",
                field="value",
                found=f"{clipped} cells clipped",
                expected=f"values within ±{anchor.bank.scale:.3g}",
            )
        value = anchor.bank.value(data[reg.SLOT_RESULT.size :])
        return Measured(value, anchor.at + (tick - anchor.tick) / self._ticks_per_tau)


def _answers(address: str) -> bool:
    """Return whether a board is at the other end of a line."""
    try:
        link = RegisterLink(connect(address))
    except OSError:  # somebody holds it
        return False
    try:
        link.greet()
        return link.registers((reg.MAGIC_NUMBER,))[reg.MAGIC_NUMBER] == reg.MAGIC
    except LinkFailed:
        return False
    finally:
        link.close()
