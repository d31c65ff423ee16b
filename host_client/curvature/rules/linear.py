"""Matrix products with a trained matrix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from host_client.curvature.layouts import Layout
from host_client.curvature.rules.base import Operation, Rules, ToRows


@dataclass
class Product(Operation):
    """y = a Wᵀ + e, or y = a W + e, for inputs a of shape (..., d_in).

    Attributes:
        inputs: a.
        transposed: whether W is of shape (d_in, d_out).
    """

    inputs: Tensor
    roles: dict[str, Tensor]
    transposed: bool = False

    def sample_dims(self, shape: Sequence[int], roles: Collection[str]) -> Sequence[int]:
        """All but the features."""
        return range(len(shape) - 1)

    def factors(self, layout: Layout) -> Tensor:
        """The inputs by sample, shape (b, d_in), or (b, p, d_in) where there are positions."""
        return layout.by_position(self.inputs, 0)

    def cotangents(self, layout: Layout) -> ToRows:
        """From cotangents to those by sample, (k, b, d_out) or (k, b, p, d_out)."""
        return lambda cotangents: layout.by_position(cotangents, 1)

    def rows(self, role: str, layout: Layout, dtype: torch.dtype) -> ToRows:
        """Σ_p δ_p a_pᵀ, or Σ_p δ_p."""
        if role == "bias":
            return lambda cotangents: _with_positions(layout.by_position(cotangents, 1), 3).sum(2)
        inputs = _with_positions(self.factors(layout), 2).to(dtype)  # (b, p, d_in)

        def weight(cotangents: Tensor) -> Tensor:
            delta = _with_positions(layout.by_position(cotangents, 1), 3)
            rows = inputs.mT @ delta if self.transposed else delta.mT @ inputs
            return rows.flatten(2)

        return weight


def _with_positions(tensor: Tensor, dims: int) -> Tensor:
    return tensor.unsqueeze(-2) if tensor.dim() == dims else tensor


def _linear(shape: torch.Size, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operation:
    roles = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return Product(input.detach(), roles)


def _addmm(
    shape: torch.Size, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Operation | None:
    """As `transformers` writes its Conv1D."""
    if beta != 1 or alpha != 1 or input.shape != mat2.shape[1:]:
        return None
    return Product(mat1.detach(), {"weight": mat2, "bias": input}, transposed=True)


def _matmul(shape: torch.Size, input: Tensor, other: Tensor) -> Operation | None:
    if other.dim() != 2 or input.dim() < 2:
        return None
    return Product(input.detach(), {"weight": other}, transposed=True)


RULES: Rules = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.Tensor.addmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm), _matmul),
}
