"""Operators and programs that are kept for later: messages as bytes, and tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from spu_link.errors import mismatch
from spu_link.operators import Dense, FactorOperator, Operator
from spu_link.program import Program
from spu_link.wire.checks import layout
from spu_link.wire.programs import header_of, kept_of, operator_of, program_of
from spu_link.wire.tables import DTYPES, OPERAND_ROLES, ROLES, block_of
from tngd.spu.v1 import spu_pb2 as pb


def save_operator(operator: Operator) -> list[dict[str, Any]] | None:
    """Return an operator as plain bytes and tensors, which ``torch.save`` keeps and ``torch.load`` trusts.

    Returns:
        The message of each block, and its tensors by role, not copied; None for an operator of another class than those
        of `spu_link.operators`.
    """
    if not isinstance(operator, (Dense, FactorOperator)):
        return None
    return [
        {
            "block": block_of(block).SerializeToString(),
            "tensors": {int(ROLES[role]): tensor for role, tensor in block.tensors.items()},
        }
        for block in operator.to_blocks()
    ]


def restore_operator(saved: Sequence[dict[str, Any]], device: torch.device) -> Operator:
    """Return the operator behind what `save_operator` has returned, with its tensors on a device.

    Raises:
        InvalidProgram: when they do not fit together.
    """
    tensors = [{OPERAND_ROLES[role]: tensor.to(device) for role, tensor in block["tensors"].items()} for block in saved]
    return operator_of([pb.Block.FromString(block["block"]) for block in saved], tensors)


def save_program(program: Program) -> tuple[bytes, list[Tensor]]:
    """Return the header of a program but for its start and precision in bytes, and its tensors as they are."""
    header, tensors = header_of(Program(program.operator, program.drive, damping=program.damping, noise=program.noise))
    return header.SerializeToString(), tensors


def restore_program(saved: bytes, tensors: Sequence[Tensor], *, cells: int) -> Program:
    """Return the program behind what `save_program` has returned, or so it is said.

    Args:
        saved: the header.
        tensors: not copied. Their values are not looked at here.
        cells: max number of cells of the device.

    Raises:
        InvalidProgram: when they do not fit together.
        CapacityExceeded: when the device is too small.
    """
    try:
        header = pb.ProgramHeader.FromString(saved)
    except DecodeError:
        raise mismatch("state.header", "not one", "the header of a program") from None
    is_open = layout(header, cells=cells, max_bytes=sys.maxsize).open  # the bytes are here
    if is_open or kept_of(header) or len(tensors) != len(header.tensors):
        raise mismatch("state.header", "incomplete", "the header of a program with all its tensors")
    for index, (spec, tensor) in enumerate(zip(header.tensors, tensors, strict=True)):
        if DTYPES[spec.dtype] != tensor.dtype or tuple(spec.shape) != tuple(tensor.shape):
            raise mismatch(
                f"state.program.{index}", f"{tensor.dtype} of shape {tuple(tensor.shape)}", "what the header says"
            )
    return program_of(header, tensors)
