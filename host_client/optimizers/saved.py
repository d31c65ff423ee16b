"""Curvatures in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from host_client.optimizers.solvers.kronecker import Kronecker
from spu_link.operators import Operator
from spu_link.saved import restored, saved


def saved_operator(operator: Operator) -> list[dict[str, Any]] | None:
    """A curvature as plain bytes and tensors; None for one that is more than its blocks, such as a `Damped`."""
    return operator.saved() if isinstance(operator, Kronecker) else saved(operator)


def restored_operator(blocks: Sequence[dict[str, Any]], parameters: Sequence[Tensor]) -> Operator:
    """The curvature of these parameters, on their device, behind what `saved_operator` gave.

    Raises:
        InvalidProgram: when the blocks do not fit together.
    """
    device = parameters[0].device
    if "positions" in blocks[0]:
        return Kronecker.restored(blocks, [parameter.numel() for parameter in parameters], device)
    return restored(blocks, device)
