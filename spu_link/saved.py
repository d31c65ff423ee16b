"""Operators in checkpoints: as plain bytes and tensors, which ``torch.save`` keeps and ``torch.load`` trusts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spu_link.operators import Dense, FactorOperator, Operator
from spu_link.wire import operator_of
from tngd.spu.v1 import spu_pb2 as pb


def saved(operator: Operator) -> list[dict[str, Any]] | None:
    """The blocks of an operator, each with its geometry in bytes and its tensors by role; not copied.

    Returns:
        The blocks; None for an operator that is more than its blocks, such as a `Damped`.
    """
    if not isinstance(operator, (Dense, FactorOperator)):
        return None
    return [
        {"block": block.SerializeToString(), "tensors": {int(role): tensor for role, tensor in tensors.items()}}
        for block, tensors in operator.wire()
    ]


def restored(blocks: Sequence[dict[str, Any]], device: torch.device) -> Operator:
    """The operator behind its blocks, with its tensors on a device.

    Raises:
        InvalidProgram: when they do not fit together.
    """
    tensors = [
        {pb.Role.ValueType(role): tensor.to(device) for role, tensor in one["tensors"].items()} for one in blocks
    ]
    return operator_of([pb.Block.FromString(one["block"]) for one in blocks], tensors)
