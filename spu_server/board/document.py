"""The register map as the documents show it."""

from __future__ import annotations

from spu_server.board.registers import BANK_BASE, REGISTERS, SLOT_BASE, SLOT_STRIDE

TYPES = {"I": "u32", "Q": "u64", "d": "f64"}
"""Formats of `struct` as people say them."""


def register_table() -> str:
    """The map as Markdown, one row a register."""
    lines = ["| address | name | type | unit | | |", "|---|---|---|---|---|---|"]
    for register in REGISTERS:
        access = "read, write" if register.writable else "read"
        kind = TYPES[register.format]
        lines.append(
            f"| {register.address:#06x} | {register.name} | {kind} | {register.unit} | {access} | {register.meaning} |"
        )
    lines.append(f"| {SLOT_BASE:#06x} + {SLOT_STRIDE:#x}·k | SLOT k | block | | read, write | a measurement, below |")
    lines.append(f"| {BANK_BASE:#06x} | BANK | block | | write | the shadow bank, below |")
    return "\n".join(lines) + "\n"
