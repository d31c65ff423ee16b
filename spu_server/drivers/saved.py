"""A device's saved state as bytes. What is read back is untrusted: nothing of it is used that has not been checked."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from spu_link import wire
from spu_link.aligned import BOUNDARY, copy_at, place_of
from spu_link.errors import mismatch
from spu_link.packing import pack, unpack
from spu_link.precision import Precision
from spu_link.program import Program
from spu_server.drivers.base import Saved

OWN, PROGRAM = "driver.", "program."
"""Beginnings of the names of the driver's own tensors and of the program's."""

Time = Annotated[float, Field(allow_inf_nan=False)]
"""A device time, in τ: below 0 where the device began after it, and was given an older state."""


class Standing(BaseModel):
    """Status of the device, in addition to what its driver knows.

    Attributes:
        time: device time, in τ.
        running: whether a program was in force; if so:
        sequence: its number.
        operator_since: number of the first program in a row under its operator.
        began: device time at which it took effect, in τ.
        last_event: device time of the last event, behind which the path is gone, in τ.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    time: float = Field(ge=0, allow_inf_nan=False)
    running: bool
    sequence: int = Field(ge=0, lt=1 << 62)
    operator_since: int = Field(ge=0)
    began: Time
    last_event: Time

    @model_validator(mode="after")
    def _in_order(self) -> Standing:
        if self.began > self.time or self.last_event > self.time:
            raise ValueError("the program began, or the last event was, after the time of saving")
        if self.operator_since > self.sequence or (self.running and self.operator_since == 0):
            raise ValueError("the operator is of no program up to the one in force")
        return self


class _About(BaseModel):
    """The parts of a saved state that are no tensors.

    Attributes:
        version: grows with every change that an older daemon would not understand.
        driver: whose state it is.
        standing: the device's part.
        facts: the driver's part.
        header: header of the program with the operator's values as the driver has them, in base64; empty without one.
        precision: how they travelled.
        places: where the tensors began, modulo the boundary: products may differ with that in the last bit.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1] = 1
    driver: str
    standing: Standing
    facts: dict[str, Any]
    header: str
    precision: Precision | None
    places: dict[str, Annotated[int, Field(ge=0, lt=BOUNDARY)]]


def encode(saved: Saved, standing: Standing, driver: str) -> bytes:
    """A state of a driver as bytes."""
    tensors = {f"{OWN}{name}": tensor.contiguous() for name, tensor in saved.tensors.items()}
    header, program = b"", saved.program
    if program is not None:
        header, operands = wire.save_program(program)
        tensors |= {f"{PROGRAM}{index}": tensor for index, tensor in enumerate(operands)}
    about = _About(
        driver=driver,
        standing=standing,
        facts=dict(saved.facts),
        header=b64encode(header).decode(),
        precision=program.precision if program else None,
        places={name: place_of(tensor) for name, tensor in tensors.items()},
    )
    return pack(about, tensors)


def decode(data: bytes | bytearray | memoryview, driver: str, cells: int) -> tuple[Saved, Standing]:
    """The state behind bytes, its program checked value by value.

    Args:
        data: what `encode` gave, or so it is said.
        driver: whose state it must be.
        cells: max number of cells of the device.

    Raises:
        InvalidProgram: when they are something else.
        CapacityExceeded: when the device is too small.
    """
    header, tensors = unpack(data, _About)
    if header.driver != driver:
        raise mismatch("state.driver", repr(header.driver), f"{driver!r}, the driver of this device")
    places = header.places
    if set(places) != set(tensors) or any(places[name] % tensor.element_size() for name, tensor in tensors.items()):
        raise mismatch(
            "state.places", sorted(places.items())[:4], "one place for each tensor, at a multiple of its element"
        )
    tensors = {name: copy_at(tensor.contiguous(), places[name]) for name, tensor in tensors.items()}
    own = {name.removeprefix(OWN): tensors.pop(name) for name in sorted(tensors) if name.startswith(OWN)}
    program = _program(header, tensors, cells)
    if header.standing.running != (program is not None):
        raise mismatch("state.standing.running", header.standing.running, "whether there is a program")
    return Saved(header.standing.time, program, own, header.facts), header.standing


def _program(about: _About, tensors: Mapping[str, Tensor], cells: int) -> Program | None:
    if not about.header:
        if tensors:
            raise mismatch("state", f"with {sorted(tensors)[:4]}", "no such tensors without a program")
        return None
    names = [f"{PROGRAM}{index}" for index in range(len(tensors))]
    if set(tensors) != set(names):
        raise mismatch("state", f"with {sorted(tensors)[:4]}", "the tensors of a program")
    try:
        header = b64decode(about.header, validate=True)
    except ValueError:
        raise mismatch("state.header", "not one", "the header of a program") from None
    program = wire.restore_program(header, [tensors[name] for name in names], cells=cells)
    program = replace(program, precision=about.precision)
    program.check_values()
    return program
