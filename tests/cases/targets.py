"""Targets for given outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def labels(outputs: Tensor) -> Tensor:
    """Class indices for outputs of shape (b, d, …)."""
    return torch.randint(outputs.shape[1], (len(outputs), *outputs.shape[2:]))


def partly_ignored(outputs: Tensor) -> Tensor:
    """Class indices, every third of which a cross-entropy leaves out by default."""
    targets = labels(outputs)
    targets.view(-1)[::3] = -100
    return targets


def probabilities(outputs: Tensor) -> Tensor:
    """A distribution over the classes for outputs of shape (b, d, …)."""
    return torch.randn_like(outputs).softmax(1)


def binary(outputs: Tensor) -> Tensor:
    """Zeros and ones, as many as outputs."""
    return torch.randint(2, outputs.shape).to(outputs)


def real(outputs: Tensor) -> Tensor:
    """Real numbers, as many as outputs."""
    return torch.randn_like(outputs)
