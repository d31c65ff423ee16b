"""The register map, version 1: addresses in bytes, numbers little-endian.

A block that is read or written in one request is read or written at one instant. A program is written to the shadow
bank, next to the one in force, and changes nothing until the command ``commit``. Voltages are in units of full scale:
codes of start and readings run from −32767 to 32767, which is −1 to 1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAP_VERSION = 1
"""Of the registers; a driver refuses another one."""

MAGIC = 0x53505542
"""Says that there is an SPU board at the other end."""

MAX_CELLS = 64
"""Maximum number of cells that the map has room for."""

FULL_SCALE = 32767
"""Largest code of drive, start, couplings and readings."""


@dataclass(frozen=True)
class Register:
    """One register.

    Attributes:
        name: as in the documents.
        address: of its first byte.
        format: of its value, as in Python's `struct`.
        unit: of its value.
        writable: whether the host may write it.
        meaning: what it holds.
    """

    name: str
    address: int
    format: str
    unit: str
    writable: bool
    meaning: str

    @property
    def size(self) -> int:
        """Bytes."""
        return struct.calcsize(f"<{self.format}")

    def pack(self, value: float) -> bytes:
        """Return a value as the register holds it."""
        return struct.pack(f"<{self.format}", value)

    def unpack(self, data: bytes) -> float:
        """The value that stands in the register."""
        (value,) = struct.unpack(f"<{self.format}", data)
        number: float = value
        return number


MAGIC_NUMBER = Register("MAGIC", 0x00, "I", "", False, "0x53505542: an SPU board")
MAP = Register("MAP", 0x04, "I", "", False, "version of this map")
SERIAL = Register("SERIAL", 0x08, "I", "", False, "number of the board")
CELLS = Register("CELLS", 0x0C, "I", "cells", False, f"cells of the board, at most {MAX_CELLS}")
TICK_RATE = Register("TICK_RATE", 0x10, "d", "ticks/s", False, "nominal rate of the tick counter")
TICKS_PER_TAU = Register("TICKS_PER_TAU", 0x18, "d", "ticks/τ", False, "nominal ticks in a time constant")
SLOTS = Register("SLOTS", 0x20, "I", "", False, "measurement slots")

TICK = Register("TICK", 0x40, "Q", "ticks", False, "the free-running counter, now")
STATE = Register("STATE", 0x48, "I", "", False, "0: cells discharged, 1: running")
PROGRAMS = Register("PROGRAMS", 0x4C, "I", "", False, "programs that have taken effect since the start")
COMMIT_TICK = Register("COMMIT_TICK", 0x50, "Q", "ticks", False, "when the last one did")
BANK_CHECK = Register("BANK_CHECK", 0x58, "I", "", False, "CRC-32C of the shadow bank as the board holds it")
SELF_TEST = Register("SELF_TEST", 0x5C, "I", "", False, "flags of what the last self-test found; 0: nothing")

COMMAND = Register("COMMAND", 0x80, "I", "", True, "1: commit, 2: halt, 3: self-test")

STATUS = (TICK, STATE, PROGRAMS, COMMIT_TICK, BANK_CHECK, SELF_TEST)
"""Registers that lie together and are read together."""

IDENTITY = (MAGIC_NUMBER, MAP, SERIAL, CELLS, TICK_RATE, TICKS_PER_TAU, SLOTS)
"""Likewise; they never change while the board runs."""

REGISTERS = (*IDENTITY, *STATUS, COMMAND)
"""All of them, in the order of their addresses."""


class Command(IntEnum):
    """Values of COMMAND."""

    COMMIT = 1
    HALT = 2
    SELF_TEST = 3


class Mode(IntEnum):
    """Trigger of a slot's measurement."""

    OFF = 0
    NOW = 1
    AFTER_COMMIT = 2


class SlotState(IntEnum):
    """Status of a measurement."""

    EMPTY = 0
    ARMED = 1
    DONE = 2
    DROPPED = 3


class Start(IntEnum):
    """Start of the cells when a program takes effect."""

    KEEP = 0
    CODES = 1


SLOT_BASE = 0x100
SLOT_STRIDE = 0xC0
"""Slot k lies at SLOT_BASE + k·SLOT_STRIDE: what is asked (writable), then what was measured."""

SLOT_REQUEST = struct.Struct("<IIQ")
"""mode, number (the host's own, repeated in the result), ticks after the commit."""

SLOT_RESULT = struct.Struct("<IIIIQ")
"""state, number, number of the program in force, cells that were clipped, tick; then int16 codes, one a cell."""

BANK_BASE = 0x2000
"""Of the shadow bank; it is only written."""

BANK_HEADER = struct.Struct("<IIfff")
"""start, reserved; value of one code of the couplings in 1/τ, of the drive in full scales/τ; noise in full scales²/τ.

Behind it int16 codes: couplings (cells × cells, row by row), drive (cells), start (cells)."""


def slot_address(slot: int) -> int:
    """Of the first byte of a slot."""
    return SLOT_BASE + slot * SLOT_STRIDE


def bank_size(cells: int) -> int:
    """Bytes of a program's bank."""
    return BANK_HEADER.size + 2 * (cells * cells + 2 * cells)


def span(registers: tuple[Register, ...]) -> tuple[int, int]:
    """Address and length of registers that lie together."""
    return registers[0].address, registers[-1].address + registers[-1].size - registers[0].address


def unpack(registers: tuple[Register, ...], data: bytes) -> dict[Register, float]:
    """Values of registers that were read together."""
    base = registers[0].address
    return {r: r.unpack(data[r.address - base : r.address - base + r.size]) for r in registers}
