"""Curvatures in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from host_client.optimizers.solvers.kronecker import Kronecker
from spu_link.errors import InvalidProgram
from spu_link.operators import Operator
from spu_link.saved import restored, saved
from spu_link.values import all_finite


def saved_operator(operator: Operator) -> list[dict[str, Any]] | None:
    """A curvature as plain bytes and tensors; None for one that is more than its blocks, such as a `Damped`."""
    return operator.saved() if isinstance(operator, Kronecker) else saved(operator)


def restored_operator(blocks: Sequence[dict[str, Any]], parameters: Sequence[Tensor]) -> Operator:
    """Return the curvature of these parameters, on their device, from what `saved_operator` returned.

    Raises:
        ValueError: when the blocks do not fit together or these parameters, or hold a value that is not finite.
    """
    sizes, device = [parameter.numel() for parameter in parameters], parameters[0].device
    try:
        kronecker = "positions" in blocks[0]
        operator: Operator = Kronecker.restored(blocks, sizes, device) if kronecker else restored(blocks, device)
        ones = torch.ones(sum(sizes), dtype=torch.promote_types(operator.dtype, torch.float32), device=device)
        product = operator.curvature(ones)  # has a value that is not finite wherever F has one
    except (InvalidProgram, DecodeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the curvature in the state dictionary does not fit the {sum(sizes)} parameters that it is of: {error}"
        ) from error
    if not all_finite(product):
        raise ValueError("the curvature in the state dictionary is not finite: load an earlier checkpoint")
    return operator
