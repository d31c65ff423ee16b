"""Factors of several layers side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from spu_link.errors import mismatch
from spu_link.operators.base import BlockFactor, FactorOperator


class LayerRows(FactorOperator):
    """A = [A_1 A_2 …]: the columns of several layers' factors, in the order of their parameters.

    Args:
        layers: one factor a layer, all with the same number of rows m.

    Raises:
        InvalidProgram: when there is none, or when the numbers of rows differ.
    """

    kind = "layers"

    def __init__(self, layers: Sequence[BlockFactor]) -> None:
        self.layers = tuple(layers)
        rows = sorted({layer.shape[0] for layer in self.layers})
        if len(rows) != 1:
            raise mismatch("layers", f"blocks with {rows} rows", "at least one block, all with the same number of rows")
        self._columns = [layer.shape[1] for layer in self.layers]
        self._shape = (rows[0], sum(self._columns))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, N) of A."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the operands: the wider one where layers differ."""
        return max((layer.dtype for layer in self.layers), key=lambda dtype: dtype.itemsize)

    def apply(self, v: Tensor) -> Tensor:
        """A v, the sum over layers of A_l v_l."""
        products = (layer.apply(part) for layer, part in zip(self.layers, v.split(self._columns, -1), strict=True))
        total = next(products).clone()
        for product in products:
            total += product
        return total

    def adjoint(self, w: Tensor) -> Tensor:
        """Aᵀ w, the layers' parts one after the other."""
        result = w.new_empty(*w.shape[:-1], self._shape[1])
        for layer, part in zip(self.layers, result.split(self._columns, -1), strict=True):
            part.copy_(layer.adjoint(w.to(layer.dtype)))
        return result

    def add_gram(self, total: Tensor) -> None:
        """Add A Aᵀ, the sum of the layers' Gram matrices."""
        for layer in self.layers:
            layer.add_gram(total)

    def dense(self) -> Tensor:
        """A in full."""
        return torch.cat([layer.dense() for layer in self.layers], dim=1)

    def dense_rows(self, rows: slice) -> Tensor:
        """Return consecutive rows of A in full, float64."""
        return torch.cat([layer.dense_rows(rows) for layer in self.layers], dim=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same layers after `function`."""
        return type(self)([layer.map(function) for layer in self.layers])

    def to_blocks(self) -> Sequence[BlockFactor]:
        """The layers."""
        return self.layers
