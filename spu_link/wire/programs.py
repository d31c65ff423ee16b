"""From a program to its header, whole or in two parts, with the tensors behind it; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from spu_link.errors import OperatorGone, ProtocolError, mismatch
from spu_link.operators import LayerRows, Operator
from spu_link.operators.base import BlockFactor, Role
from spu_link.precision import NARROW, Encoded, Precision, check_largest, decode, encode
from spu_link.program import Program
from spu_link.wire.tables import (
    BLOCKS,
    DTYPES,
    OPERAND_ROLES,
    PROGRAM_ROLES,
    ROLES,
    WireRole,
    block_of,
    geometry_of,
    role_name,
)
from spu_link.wire.tensors import copy_to_host, nbytes_of, tensor_from, tensor_spec
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


def program_from(header: pb.ProgramHeader, buffer: memoryview, running: Program | None = None) -> Program:
    """The program behind a header that `layout` has accepted and its bytes; tensors are views of `buffer`, or decoded.

    Args:
        header: what the client sent.
        buffer: the tensors' bytes.
        running: whose operator a program may keep; it then has the very object.

    Raises:
        InvalidProgram: when an operator refuses what the layout let pass, for instance two dtypes in one block.
        OperatorGone: when the program keeps an operator and none runs.
    """
    tensors = []
    offset = 0
    for spec in header.tensors:
        tensors.append(decode(tensor_from(spec, buffer, offset), list(spec.scales)))
        offset += nbytes_of(spec)
    return program_of(header, tensors, running)


def program_of(header: pb.ProgramHeader, tensors: Sequence[Tensor], running: Program | None = None) -> Program:
    """The program behind a header and its decoded tensors, which are not copied; otherwise as `program_from`."""
    blocks: list[dict[Role, Tensor]] = [{} for _ in header.blocks]
    own: dict[WireRole, Tensor] = {}
    for spec, tensor in zip(header.tensors, tensors, strict=True):
        if spec.role in PROGRAM_ROLES:
            own[spec.role] = tensor
        else:
            blocks[spec.block][OPERAND_ROLES[spec.role]] = tensor
    narrow = (NARROW.get(DTYPES[spec.dtype]) for spec in header.tensors)
    precision = next((name for name in narrow if name is not None), None)
    if kept := kept_of(header):
        if running is None:
            raise OperatorGone("the device holds no operator that could be kept; send it", field="kept", found="none")
        if running.cells != kept.parameters:
            raise mismatch("kept.parameters", kept.parameters, f"{running.cells}, as the device's operator has")
        operator, precision = running.operator, running.precision
    else:
        operator = operator_of(header.blocks, blocks)
    start: Any = own.get(pb.ROLE_START, "keep" if header.start == pb.START_KEEP else "drive")
    return Program(
        operator, own[pb.ROLE_DRIVE], damping=header.damping, noise=header.noise, start=start, precision=precision
    )


def operator_of(blocks: Sequence[pb.Block], tensors: Sequence[Mapping[Role, Tensor]]) -> Operator:
    """The operator behind its blocks, and the tensors of each by role.

    Raises:
        InvalidProgram: when they do not fit together.
    """
    made = []
    for block, operands in zip(blocks, tensors, strict=True):
        cls = BLOCKS[block.WhichOneof("kind") or ""]
        made.append(cls(*(operands[role] for role in cls.dimensions), **geometry_of(block)))
    return made[0] if len(made) == 1 else LayerRows(cast("list[BlockFactor]", made))
