"""A device's saved state as bytes, in the safetensors format.

Beside the tensors there are two more: `about`, JSON in UTF-8, and `check`, a CRC-32C over everything else. What is read
back is taken for what it is: bytes from somewhere, of which nothing is believed that has not been looked at.
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import google_crc32c
import torch
from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spu_link import wire
from spu_link.aligned import BOUNDARY, place_of, placed
from spu_link.errors import InvalidProgram
from spu_link.operators.base import mismatch
from spu_link.precision import Precision
from spu_link.program import Program
from spu_server.drivers.base import Saved
from tngd.spu.v1 import spu_pb2 as pb

ABOUT, CHECK = "about", "check"
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
    header, program = "", saved.program
    if program is not None:
        message, operands = wire.operator_header(program.operator, None)
        late, vectors = wire.late_header(
            Program(program.operator, program.drive, damping=program.damping, noise=program.noise)
        )
        message.MergeFrom(late)
        header = b64encode(message.SerializeToString()).decode()
        tensors |= {f"{PROGRAM}{index}": tensor for index, tensor in enumerate([*operands, *vectors])}
    about = _About(
        driver=driver,
        standing=standing,
        facts=dict(saved.facts),
        header=header,
        precision=program.precision if program else None,
        places={name: place_of(tensor) for name, tensor in tensors.items()},
    )
    tensors[ABOUT] = torch.frombuffer(
        bytearray(json.dumps(about.model_dump(), sort_keys=True).encode()), dtype=torch.uint8
    )
    tensors[CHECK] = _check(tensors)
    return save(tensors)


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
    try:
        tensors = load(bytes(data))
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise _invalid("state", f"{len(data)} bytes of something else ({error})") from None
    check, about = tensors.pop(CHECK, None), tensors.get(ABOUT)
    if about is None or about.dtype != torch.uint8 or check is None:
        raise _invalid("state", f"a file of tensors {sorted(tensors)[:4]}")
    if not torch.equal(check, _check(tensors)):
        raise _invalid("state.check", "wrong: the state has been changed or cut since it was saved")
    text = bytes(tensors.pop(ABOUT).numpy())
    found = _parsed(text)
    if found.driver != driver:
        raise mismatch("state.driver", repr(found.driver), f"{driver!r}, the driver of this device")
    places = found.places
    if set(places) != set(tensors) or any(places[name] % tensor.element_size() for name, tensor in tensors.items()):
        raise mismatch(
            "state.places", sorted(places.items())[:4], "one place for each tensor, at a multiple of its element"
        )
    tensors = {name: placed(tensor.contiguous(), places[name]) for name, tensor in tensors.items()}
    own = {name.removeprefix(OWN): tensors.pop(name) for name in sorted(tensors) if name.startswith(OWN)}
    program = _program(found, tensors, cells)
    if found.standing.running != (program is not None):
        raise mismatch("state.standing.running", found.standing.running, "whether there is a program")
    return Saved(found.standing.time, program, own, found.facts), found.standing


def _program(about: _About, tensors: Mapping[str, Tensor], cells: int) -> Program | None:
    if not about.header:
        if tensors:
            raise mismatch("state", f"with {sorted(tensors)[:4]}", "no such tensors without a program")
        return None
    try:
        header = pb.ProgramHeader.FromString(b64decode(about.header, validate=True))
    except (DecodeError, ValueError):
        raise mismatch("state.header", "not one", "the header of a program") from None
    layout = wire.layout(header, cells=cells, max_bytes=sys.maxsize)  # the bytes are here
    if layout.open or wire.kept_of(header) or set(tensors) != {f"{PROGRAM}{i}" for i in range(len(header.tensors))}:
        raise mismatch("state.header", "incomplete", "the header of a program with all its tensors")
    ordered = [tensors[f"{PROGRAM}{index}"] for index in range(len(header.tensors))]
    for index, (spec, tensor) in enumerate(zip(header.tensors, ordered, strict=True)):
        if wire.DTYPES[spec.dtype] != tensor.dtype or tuple(spec.shape) != tuple(tensor.shape):
            raise mismatch(
                f"state.{PROGRAM}{index}", f"{tensor.dtype} of shape {tuple(tensor.shape)}", "what the header says"
            )
    program = wire.program_of(header, ordered)
    program.precision = about.precision
    program.check_values()
    return program


def _parsed(text: bytes) -> _About:
    try:
        return _About.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["state", *map(str, first["loc"])])
        raise mismatch(field, repr(first["input"])[:100], str(first["msg"])) from None


def _check(tensors: Mapping[str, Tensor]) -> Tensor:
    """CRC-32C over names, kinds and bytes of the tensors."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        crc = google_crc32c.extend(crc, f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for piece in wire.chunks(wire.byte_views([tensor])):
            crc = google_crc32c.extend(crc, piece)
    return torch.frombuffer(bytearray(crc.to_bytes(4, "little")), dtype=torch.uint8)


def _invalid(field: str, found: str) -> InvalidProgram:
    return mismatch(field, found, "what save_state of such a device gave")
