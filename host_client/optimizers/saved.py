"""Curvatures in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from host_client.curvature.kronecker.operator import KroneckerFactors
from spu_link.errors import InvalidProgram
from spu_link.operators import Operator
from spu_link.values import all_finite
from spu_link.wire import restore_operator, save_operator


def save_curvature(operator: Operator) -> list[dict[str, Any]] | None:
    """A curvature as plain bytes and tensors; None for one of a class of its own."""
    return operator.save() if isinstance(operator, KroneckerFactors) else save_operator(operator)


def restore_curvature(blocks: Sequence[dict[str, Any]], parameters: Sequence[Tensor]) -> Operator:
    """Return the curvature of these parameters, on their device, from what `save_curvature` returned.

    Raises:
        ValueError: when the blocks do not fit together or these parameters, or hold a value that is not finite.
    """
    sizes, device = [parameter.numel() for parameter in parameters], parameters[0].device
    try:
        kronecker = "positions" in blocks[0]
        operator: Operator = (
            KroneckerFactors.restore(blocks, sizes, device) if kronecker else restore_operator(blocks, device)
        )
        ones = torch.ones(sum(sizes), dtype=torch.promote_types(operator.dtype, torch.float32), device=device)
        product = operator.curvature(ones)  # has a value that is not finite wherever F has one
    except (InvalidProgram, DecodeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the curvature in the state dictionary does not fit the {sum(sizes)} parameters that it is of: {error}"
        ) from error
    if not all_finite(product):
        raise ValueError("the curvature in the state dictionary is not finite: load an earlier checkpoint")
    return operator
