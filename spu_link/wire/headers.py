"""From a program to its header, whole or in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from spu_link.errors import ProtocolError
from spu_link.operators import Operator
from spu_link.precision import Encoded, Precision, check_largest, encode
from spu_link.program import Program
from spu_link.wire.tables import PROGRAM_ROLES, ROLES, WireRole, block_of, role_name
from spu_link.wire.tensors import copy_to_host, tensor_spec
from tngd.spu.v1 import spu_pb2 as pb


@dataclass(frozen=True)
class _Operand:
    """A tensor of a program, as it travels and as it was."""

    encoded: Encoded
    tensor: Tensor
    role: WireRole
    block: int = 0
    precision: Precision | None = None
    name: str = ""


def header_of(program: Program) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """Header of a program (without session), and its tensors in the order of the bytes, contiguous on the CPU.

    Raises:
        InvalidProgram: when a value does not fit into the program's precision.
    """
    header, late = pb.ProgramHeader(), pb.ProgramHeader()
    operands = [*_of_operator(header, program.operator, program.precision), *_of_rest(late, program)]
    header.MergeFrom(late)
    return header, _describe(header, operands)


def late_header(program: Program) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """Parts of a program that an open header leaves out, for `complete`, and the tensors after the operator's."""
    header = pb.ProgramHeader()
    return header, _describe(header, _of_rest(header, program))


def operator_header(operator: Operator, precision: Precision | None) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """An open header, which describes the operator alone, and the operator's tensors as they travel in a precision.

    Raises:
        InvalidProgram: when a value does not fit into the precision.
    """
    header = pb.ProgramHeader()
    return header, _describe(header, _of_operator(header, operator, precision))


def _of_operator(header: pb.ProgramHeader, operator: Operator, precision: Precision | None) -> list[_Operand]:
    """Describe an operator but for its tensors, which follow."""
    operands = []
    for index, block in enumerate(operator.to_blocks()):
        header.blocks.append(block_of(block))
        for role, operand in block.tensors.items():
            if precision is None or role == "indices":
                operands.append(_Operand(Encoded(operand), operand, ROLES[role], index))
            else:
                encoded = encode(operand, precision, alike=role == "matrix")
                operands.append(_Operand(encoded, operand, ROLES[role], index, precision, f"{block.kind}.{role}"))
    return operands


def _of_rest(header: pb.ProgramHeader, program: Program) -> list[_Operand]:
    """Describe what is not the operator's but for its tensors, which follow."""
    header.damping, header.noise = program.damping, program.noise
    header.reads.extend(pb.ScheduledRead(after=read.after, window=read.window) for read in program.schedule.reads)
    if program.schedule.not_before is not None:
        header.not_before = program.schedule.not_before
    operands = [_Operand(Encoded(program.drive), program.drive, pb.ROLE_DRIVE)]
    if isinstance(program.start, Tensor):
        header.start = pb.START_TENSOR
        operands.append(_Operand(Encoded(program.start), program.start, pb.ROLE_START))
    else:
        header.start = {"keep": pb.START_KEEP, "drive": pb.START_DRIVE}[program.start]
    return operands


def _describe(header: pb.ProgramHeader, operands: Sequence[_Operand]) -> list[Tensor]:
    """Describe tensors, all of which come to the host at once, with what has to be known of them there."""
    tensors = []
    for operand, arrived in zip(operands, _bring_to_host([operand.encoded for operand in operands]), strict=True):
        if arrived.largest is not None and operand.precision is not None:
            check_largest(operand.name, operand.tensor, arrived.largest, operand.precision)
        scales = [] if arrived.scales is None else arrived.scales.tolist()
        header.tensors.append(tensor_spec(arrived.values, role=operand.role, block=operand.block, scales=scales))
        tensors.append(arrived.values)
    return tensors


def _bring_to_host(encoded: Sequence[Encoded]) -> list[Encoded]:
    every = [(entry.values, entry.largest, entry.scales) for entry in encoded]
    arrived = iter(copy_to_host([tensor for three in every for tensor in three if tensor is not None]))
    return [
        Encoded(next(arrived), None if largest is None else next(arrived), None if scales is None else next(arrived))
        for _, largest, scales in every
    ]


def parse_header(data: bytes) -> pb.ProgramHeader:
    """Return the header behind its bytes.

    Raises:
        DecodeError: of protobuf, when they are something else.
    """
    return pb.ProgramHeader.FromString(data)


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
