"""The simulated board: its clock, converters and cells behind the registers."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from spu_link.operators import Dense
from spu_link.program import Program
from spu_server.board import registers as reg
from spu_server.board.messages import Status
from spu_server.board.registers import Command, Mode, SlotState, Start
from spu_server.board.target import Memory, RefusedAccess
from spu_server.dynamics import Transition, transition_of


@dataclass(frozen=True)
class BoardOptions:
    """Properties of the simulated board.

    Attributes:
        cells: number of cells.
        tick_rate: nominal rate of its counter, ticks per second.
        tau: time constant of its cells, seconds.
        ppm: how much faster than nominal its clock runs, in millionths.
        seed: of its noise.
        adc_noise: standard deviation of each conversion, in codes.
        slots: measurement slots.
    """

    cells: int = 8
    tick_rate: float = 1e6
    tau: float = 1e-3
    ppm: float = 0.0
    seed: int = 0
    adc_noise: float = 0.0
    slots: int = 16


@dataclass
class _Slot:
    mode: int = Mode.OFF
    number: int = 0
    after: int = 0
    state: int = SlotState.EMPTY
    programs: int = 0
    clipped: int = 0
    tick: int = 0
    codes: bytes = b""

    def pack(self, cells: int) -> bytes:
        request = reg.SLOT_REQUEST.pack(self.mode, self.number, self.after)
        result = reg.SLOT_RESULT.pack(self.state, self.number, self.programs, self.clipped, self.tick)
        return request + result + self.codes.ljust(2 * cells, b"\0")


class SimulatedBoard(Memory):
    """Cells that run all the time; their motion is computed, exactly, when somebody looks.

    Every action has a tick: a command or a measurement "now" happens at the present tick of the counter, one "after the
    commit" at its own, whenever the host comes for it.

    Args:
        options: properties of the board.
        clock: seconds, monotonic; tests pass their own.
    """

    def __init__(self, options: BoardOptions, clock: Callable[[], float] = time.monotonic) -> None:
        if not 1 <= options.cells <= reg.MAX_CELLS:
            raise ValueError(f"cells is {options.cells}; the register map has room for 1 to {reg.MAX_CELLS}")
        max_slots = (reg.BANK_BASE - reg.SLOT_BASE) // reg.SLOT_STRIDE
        if not 1 <= options.slots <= max_slots:
            raise ValueError(f"slots is {options.slots}; the register map has room for 1 to {max_slots}")
        self.options = options
        self._clock = clock
        self._begun = clock()
        self._generator = torch.Generator().manual_seed(options.seed)
        self._bank = bytearray(reg.bank_size(options.cells))
        self._slots = [_Slot() for _ in range(options.slots)]
        self._transition: Transition | None = None
        self._volts: Tensor | None = None
        self._reached = 0
        self._programs = 0
        self._commit_tick = 0
        self._self_test = 0

    def tick(self) -> int:
        """The counter now."""
        return int((self._clock() - self._begun) * self.options.tick_rate * (1 + self.options.ppm * 1e-6))

    def read(self, address: int, length: int) -> bytes:
        """Registers or one slot, as they stand at this tick."""
        self._run(self.tick())
        for registers in (reg.IDENTITY, reg.STATUS):
            base, size = reg.span(registers)
            if base <= address and address + length <= base + size:
                content = bytearray(size)
                for register, value in self._values(registers).items():
                    at = register.address - base
                    content[at : at + register.size] = struct.pack(f"<{register.format}", value)
                return bytes(content[address - base : address - base + length])
        slot, offset = self._slot_at(address)
        content = bytearray(slot.pack(self.options.cells))
        if offset + length > len(content):
            raise RefusedAccess(Status.BAD_LENGTH)
        return bytes(content[offset : offset + length])

    def write(self, address: int, data: bytes) -> None:
        """The command register, the request of a slot, or a part of the shadow bank."""
        now = self.tick()
        self._run(now)
        if address == reg.COMMAND.address:
            if len(data) != reg.COMMAND.size:
                raise RefusedAccess(Status.BAD_LENGTH)
            self._command(int(reg.COMMAND.unpack(data)), now)
        elif address >= reg.BANK_BASE:
            begin = address - reg.BANK_BASE
            if begin + len(data) > len(self._bank):
                raise RefusedAccess(Status.BAD_LENGTH)
            self._bank[begin : begin + len(data)] = data
        elif address < reg.SLOT_BASE:
            raise RefusedAccess(Status.READ_ONLY)
        else:
            slot, offset = self._slot_at(address)
            if offset or len(data) != reg.SLOT_REQUEST.size:
                raise RefusedAccess(Status.READ_ONLY)
            mode, number, after = reg.SLOT_REQUEST.unpack(data)
            self._arm(slot, mode, number, after, now)

    def _values(self, registers: tuple[reg.Register, ...]) -> dict[reg.Register, float]:
        options = self.options
        values = {
            reg.MAGIC_NUMBER: reg.MAGIC,
            reg.MAP: reg.MAP_VERSION,
            reg.SERIAL: options.seed & 0xFFFFFFFF,
            reg.CELLS: options.cells,
            reg.TICK_RATE: options.tick_rate,
            reg.TICKS_PER_TAU: options.tick_rate * options.tau,
            reg.SLOTS: options.slots,
            reg.TICK: self._reached,
            reg.STATE: int(self._transition is not None),
            reg.PROGRAMS: self._programs,
            reg.COMMIT_TICK: self._commit_tick,
            reg.BANK_CHECK: google_crc32c.value(bytes(self._bank)),
            reg.SELF_TEST: self._self_test,
        }
        return {register: values[register] for register in registers}

    def _slot_at(self, address: int) -> tuple[_Slot, int]:
        number, offset = divmod(address - reg.SLOT_BASE, reg.SLOT_STRIDE)
        if not 0 <= number < len(self._slots):
            raise RefusedAccess(Status.BAD_ADDRESS)
        return self._slots[number], offset

    def _command(self, command: int, now: int) -> None:
        if command == Command.COMMIT:
            self._commit(now)
        elif command == Command.HALT:
            self._transition = self._volts = None
            for slot in self._slots:
                slot.mode = Mode.OFF
                if slot.state == SlotState.ARMED:
                    slot.state = SlotState.DROPPED
        elif command == Command.SELF_TEST:
            self._self_test = 0
        else:
            raise RefusedAccess(Status.REFUSED)

    def _commit(self, now: int) -> None:
        n = self.options.cells
        start, _, coupling, drive, noise = reg.BANK_HEADER.unpack_from(self._bank)
        codes = np.frombuffer(self._bank, dtype="<i2", offset=reg.BANK_HEADER.size).astype(np.float64)
        couplings = torch.from_numpy(codes[: n * n].reshape(n, n) * coupling)
        driven = torch.from_numpy(codes[n * n : n * n + n] * drive)
        if start == Start.CODES:
            self._volts = torch.from_numpy(codes[n * n + n :] / reg.FULL_SCALE)
        self._transition = transition_of(Program(Dense(couplings), driven, noise=noise))
        self._programs += 1
        self._commit_tick = now
        for slot in self._slots:
            if slot.mode == Mode.AFTER_COMMIT and slot.state == SlotState.EMPTY:
                slot.tick, slot.state = now + slot.after, SlotState.ARMED

    def _arm(self, slot: _Slot, mode: int, number: int, after: int, now: int) -> None:
        if mode not in set(Mode):
            raise RefusedAccess(Status.REFUSED)
        slot.mode, slot.number, slot.after = mode, number, after
        slot.state, slot.codes, slot.tick = SlotState.EMPTY, b"", 0
        if mode == Mode.NOW:
            slot.tick = now
            self._measure(slot)

    def _run(self, to: int) -> None:
        """Visit every measurement that has come due, in the order of the ticks, and then stand at `to`."""
        due = [slot for slot in self._slots if slot.state == SlotState.ARMED and slot.tick <= to]
        for slot in sorted(due, key=lambda slot: slot.tick):
            self._move(slot.tick)
            self._measure(slot)
        self._move(to)

    def _move(self, to: int) -> None:
        if self._transition is not None and to > self._reached:
            # The cells know nothing of the counter: a fast one reads too many ticks for the same time.
            true_seconds = (to - self._reached) / (self.options.tick_rate * (1 + self.options.ppm * 1e-6))
            moved = self._transition.step(self._volts, true_seconds / self.options.tau, self._normal)
            self._volts = moved.state
        self._reached = max(self._reached, to)

    def _measure(self, slot: _Slot) -> None:
        slot.programs = self._programs
        if self._transition is None:
            slot.state = SlotState.DROPPED
            return
        n = self.options.cells
        volts = torch.zeros(n, dtype=torch.float64) if self._volts is None else self._volts
        codes = volts * reg.FULL_SCALE + self.options.adc_noise * self._normal()
        slot.clipped = int((codes.abs() > reg.FULL_SCALE).sum())
        rounded = codes.round().clamp(-reg.FULL_SCALE, reg.FULL_SCALE)
        slot.codes = rounded.numpy().astype("<i2").tobytes()
        slot.state = SlotState.DONE

    def _normal(self) -> Tensor:
        return torch.randn(self.options.cells, dtype=torch.float64, generator=self._generator)
