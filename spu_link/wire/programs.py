"""From a header and the tensors behind it to the program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from spu_link.errors import OperatorGone, mismatch
from spu_link.operators import LayerRows, Operator
from spu_link.operators.base import BlockFactor, Role
from spu_link.precision import NARROW, decode
from spu_link.program import Program
from spu_link.wire.headers import kept_of
from spu_link.wire.tables import BLOCKS, DTYPES, OPERAND_ROLES, PROGRAM_ROLES, WireRole, geometry_of
from spu_link.wire.tensors import nbytes_of, tensor_from
from tngd.spu.v1 import spu_pb2 as pb


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
