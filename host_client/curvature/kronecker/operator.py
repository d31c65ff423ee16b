"""The curvature as K-FAC approximates it: a Kronecker product for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from spu_link.cached import cached_property
from spu_link.errors import InvalidProgram
from spu_link.operators import Operator


@dataclass
class LayerFactors:
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


class KroneckerFactors(Operator):
    """F as the blocks of its layers. A device takes it in parts alone, by ``connect(…, embedding="kronecker")``.

    Args:
        blocks: of all layers; parameters without a block have no curvature.
        sizes: elements of each of the N parameters, in their order.
    """

    kind = "kronecker"

    def __init__(self, blocks: Sequence[LayerFactors], sizes: Sequence[int]) -> None:
        self.blocks, self._sizes = list(blocks), list(sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (N, N)."""
        n = sum(self._sizes)
        return n, n

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the factors."""
        return self.blocks[0].inputs.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(block.inputs.nbytes + block.cotangents.nbytes for block in self.blocks)

    def curvature(self, v: Tensor) -> Tensor:
        """F v for `v` of shape (N,)."""
        return self.vector([block.product(part) for block, part in self._pairs(v)], torch.zeros_like(v))

    def dense(self) -> Tensor:
        """F in full, float64: N × N, for tests and small problems."""
        return torch.stack([self.curvature(row) for row in torch.eye(self.parameters, dtype=torch.float64)])

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same blocks with `function` applied to each factor."""
        blocks = [
            LayerFactors(block.positions, function(block.inputs), function(block.cotangents)) for block in self.blocks
        ]
        return type(self)(blocks, self._sizes)

    def to_blocks(self) -> NoReturn:
        """Refused: no device holds it whole.

        Raises:
            InvalidProgram: saying how a device takes it in parts.
        """
        raise InvalidProgram(
            f'{self!r} is more than a device can hold as one operator; connect with embedding="kronecker"',
            field="operator",
            found=repr(self),
            expected="an operator of blocks, such as what a Capture gives",
        )

    def solve(self, drive: Tensor, damping: float) -> Tensor:
        """(F + λI)⁻¹ b, exactly for this F; the eigenvectors of the factors are kept for the next b and λ.

        Args:
            drive: b, shape (N,).
            damping: λ > 0.
        """
        return self.vector([block.solve(part, damping) for block, part in self._pairs(drive)], drive / damping)

    def matrices(self, v: Tensor) -> list[Tensor]:
        """The parts of `v`, shape (N,), as the blocks' matrices of shape (d_out, n)."""
        parts = v.split(self._sizes)
        return [
            torch.cat([parts[position].view(len(block.cotangents), -1) for position in block.positions], 1)
            for block in self.blocks
        ]

    def vector(self, matrices: Sequence[Tensor], like: Tensor) -> Tensor:
        """Return matrices of the blocks as one vector of shape (N,): the inverse of `matrices`.

        Args:
            matrices: one for each block.
            like: shape (N,); gives the dtype, and the values of parameters that have no block.
        """
        parts = list(like.split(self._sizes))
        for block, matrix in zip(self.blocks, matrices, strict=True):
            widths = [self._sizes[position] // len(block.cotangents) for position in block.positions]
            for position, part in zip(block.positions, matrix.split(widths, 1), strict=True):
                parts[position] = part.flatten().to(like)
        return torch.cat(parts)

    def _pairs(self, v: Tensor) -> Iterator[tuple[LayerFactors, Tensor]]:
        return zip(self.blocks, self.matrices(v), strict=True)

    def save(self) -> list[dict[str, Any]]:
        """Return the blocks as ``torch.save`` keeps them and ``torch.load`` trusts them."""
        return [
            {"positions": list(block.positions), "inputs": block.inputs, "cotangents": block.cotangents}
            for block in self.blocks
        ]

    @classmethod
    def restore(
        cls, saved: Sequence[Mapping[str, Any]], sizes: Sequence[int], device: torch.device
    ) -> KroneckerFactors:
        """Return F from what `save` has returned, on a device."""
        blocks = [
            LayerFactors(tuple(block["positions"]), block["inputs"].to(device), block["cotangents"].to(device))
            for block in saved
        ]
        return cls(blocks, sizes)
