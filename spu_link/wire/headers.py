"""From a program to its header, whole or in two parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spu_link.errors import ProtocolError
from spu_link.landing import landed
from spu_link.operators import Operator
from spu_link.precision import Precision, encode
from spu_link.program import Program, tensor_name
from spu_link.wire.tables import PROGRAM_ROLES, role_name
from spu_link.wire.tensors import tensor_spec
from tngd.spu.v1 import spu_pb2 as pb


def header_of(program: Program) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """Header of a program (without session), and its tensors in the order of the bytes, contiguous on the CPU.

    Raises:
        InvalidProgram: when a value does not fit into the program's precision.
    """
    header, tensors = operator_header(program.operator, program.precision)
    late, rest = late_header(program)
    header.MergeFrom(late)
    return header, tensors + rest


def late_header(program: Program) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """What an open header leaves out of a program, for `complete`, and the tensors that follow the operator's."""
    header = pb.ProgramHeader(damping=program.damping, noise=program.noise)
    tensors: list[Tensor] = []
    _add(header, tensors, program.drive, role=pb.ROLE_DRIVE)
    if isinstance(program.start, Tensor):
        header.start = pb.START_TENSOR
        _add(header, tensors, program.start, role=pb.ROLE_START)
    else:
        header.start = {"keep": pb.START_KEEP, "drive": pb.START_DRIVE}[program.start]
    return header, landed(tensors)


def operator_header(operator: Operator, precision: Precision | None) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """An open header, which describes the operator alone, and the operator's tensors as they travel in a precision."""
    header = pb.ProgramHeader()
    tensors: list[Tensor] = []
    for index, (block, operands) in enumerate(operator.wire()):
        header.blocks.append(block)
        for role, operand in operands.items():
            encoded, scales = operand, list[float]()
            if precision is not None and role != pb.ROLE_INDICES:
                name = tensor_name(block, role)
                encoded, scales = encode(operand, precision, field=name, alike=role == pb.ROLE_MATRIX)
            _add(header, tensors, encoded, role=role, block=index, scales=scales)
    return header, landed(tensors)


def _add(header: pb.ProgramHeader, tensors: list[Tensor], tensor: Tensor, **description: Any) -> None:
    tensors.append(tensor)
    header.tensors.append(tensor_spec(tensor, **description))


def kept_of(header: pb.ProgramHeader) -> pb.KeptBlock | None:
    """The kept block that a header consists of, if it does."""
    return header.blocks[0].kept if header.blocks and header.blocks[0].HasField("kept") else None


def complete(header: pb.ProgramHeader, late: pb.ProgramHeader) -> None:
    """Put what comes last into an open header; the result is for `layout` to check.

    Raises:
        ProtocolError: when it says more than what is open.
    """
    allowed = {"tensors", "damping", "noise", "start", "reads", "not_before", "readings"}
    if more := {field.name for field, _ in late.ListFields()} - allowed:
        raise _late(f"late.{min(more)}", "set", "set in the header alone")
    for index, spec in enumerate(late.tensors):
        if spec.role not in PROGRAM_ROLES:
            raise _late(f"late.tensors[{index}].role", role_name(spec.role), "ROLE_DRIVE or ROLE_START")
    header.MergeFrom(late)


def _late(field: str, found: str, expected: str) -> ProtocolError:
    return ProtocolError(f"{field} is {found}; expected {expected}", field=field, found=found, expected=expected)
