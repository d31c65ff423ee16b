"""The factor of the curvature from a dense Jacobian, row by row, by plain autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from host_client.curvature.losses.softmax import softmax_root


def jacobian(logits: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """J of shape (b, d, N), in float64. (torch.func.jacrev crashes on the CPU for grouped convolutions in float64.)"""
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(logit, parameters, retain_graph=True)])
        for logit in logits.flatten()
    ]
    return torch.stack(rows).view(*logits.shape, -1).double()


def factor(logits: Tensor, parameters: Sequence[Tensor], *, reduction: str = "mean") -> Tensor:
    """A = SᵀJ / √b of shape ((d − 1)·b, N)."""
    columns = softmax_root(logits.detach().double())
    rows = torch.einsum("cbi,bin->cbn", columns, jacobian(logits, parameters)).flatten(0, 1)
    return rows / len(logits) ** 0.5 if reduction == "mean" else rows
