"""The curvature as K-FAC approximates it: a Kronecker product for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass
class Block:
    """The block B ⊗ A of one layer, for its weight and bias side by side as a matrix of shape (d_out, n).

    Attributes:
        positions: which parameters these are: weight and bias, or one of them.
        inputs: A, second moment of the layer's inputs, with a one for the bias; shape (n, n).
        cotangents: B, second moment of the cotangents of its outputs, shape (d_out, d_out).
    """

    positions: tuple[int, ...]
    inputs: Tensor
    cotangents: Tensor

    def product(self, v: Tensor) -> Tensor:
        """B V A for V of shape (d_out, n)."""
        return self.cotangents @ v @ self.inputs

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """X with B X A + λ X = b, shape (d_out, n), float64."""
        (inner, left), (outer, right) = self._eigen
        return left @ ((left.T @ b.double() @ right) / (inner[:, None] * outer + damping)) @ right.T

    @cached_property
    def _eigen(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        # In float64: the factors of a batch are singular, and float32 does not always converge on them.
        (b, left), (a, right) = (torch.linalg.eigh(factor.double()) for factor in (self.cotangents, self.inputs))
        return (b.clamp(min=0.0), left), (a.clamp(min=0.0), right)


class Kronecker:
    """F as the blocks of its layers.

    Args:
        blocks: of all layers.
        sizes: elements of each of the N parameters, in their order.
    """

    def __init__(self, blocks: Sequence[Block], sizes: Sequence[int]) -> None:
        self._blocks, self._sizes = list(blocks), list(sizes)

    def curvature(self, v: Tensor) -> Tensor:
        """F v for `v` of shape (N,)."""
        return self._each(v, Block.product)

    def solve(self, drive: Tensor, damping: float) -> Tensor:
        """(F + λI)⁻¹ b, exactly for this F; the eigenvectors of the factors are kept for the next b and λ.

        Args:
            drive: b, shape (N,).
            damping: λ > 0.
        """
        return self._each(drive, lambda block, part: block.solve(part, damping))

    def _each(self, v: Tensor, function: Callable[[Block, Tensor], Tensor]) -> Tensor:
        parts = list(v.split(self._sizes))
        for block in self._blocks:
            matrices = [parts[position].view(len(block.cotangents), -1) for position in block.positions]
            found = function(block, torch.cat(matrices, 1))
            for position, part in zip(block.positions, found.split([m.shape[1] for m in matrices], 1), strict=True):
                parts[position] = part.flatten().to(v)
        return torch.cat(parts)

    def saved(self) -> list[dict[str, Any]]:
        """The blocks as ``torch.save`` keeps them and ``torch.load`` trusts them."""
        return [
            {"positions": list(block.positions), "inputs": block.inputs, "cotangents": block.cotangents}
            for block in self._blocks
        ]

    @classmethod
    def restored(cls, saved: Sequence[Mapping[str, Any]], sizes: Sequence[int], device: torch.device) -> Kronecker:
        """F as its `saved` said it is, on a device."""
        blocks = [
            Block(tuple(one["positions"]), one["inputs"].to(device), one["cotangents"].to(device)) for one in saved
        ]
        return cls(blocks, sizes)
