"""Jacobian rows of parameters that a batch does not use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from spu_link.operators.base import BlockFactor
from spu_link.operators.embedding import EmbeddingRows
from spu_link.operators.layers import LayerRows
from spu_link.operators.rows import Rows


class ZeroRows(EmbeddingRows):
    """Rows that are all zero, held in m numbers: a table of which each sample looks up an entry and sees nothing of it.

    On the wire they are an embedding block.

    Args:
        columns: c.
        samples: b.
        parameters: N.
        dtype: float32 or float64.
        device: where the numbers are.
    """

    def __init__(
        self, columns: int, samples: int, parameters: int, *, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        super().__init__(
            torch.zeros(samples, 1, dtype=torch.int32, device=device),
            torch.zeros(columns, samples, 1, 1, dtype=dtype, device=device),
            embeddings=parameters,
        )

    def like(self, *tensors: Tensor) -> EmbeddingRows:  # type: ignore[override]
        """Return the block on the wire with other tensors."""
        return EmbeddingRows(*tensors, **self.geometry)


def without(operator: LayerRows, columns: int, sizes: Sequence[int], dropped: Collection[int]) -> LayerRows:
    """Return a factor whose columns for some parameters are zero.

    Args:
        operator: the factor.
        columns: c.
        sizes: elements of each parameter, in the order of the columns.
        dropped: indices of the parameters.
    """
    ends = list(accumulate(sizes))
    ranges = [range(ends[index] - sizes[index], ends[index]) for index in sorted(dropped)]
    layers: list[BlockFactor] = []
    end = 0
    for layer in operator.layers:
        start, end = end, end + layer.parameters
        inside = [range(max(r.start, start) - start, min(r.stop, end) - start) for r in ranges]
        gone = sum(len(r) for r in inside)
        if gone == layer.parameters:
            samples = operator.shape[0] // columns
            layers.append(ZeroRows(columns, samples, gone, dtype=layer.dtype, device=layer.device))
        elif gone:
            rows = layer.to_rows().clone()
            for r in inside:
                rows[:, r.start : max(r.start, r.stop)] = 0.0
            layers.append(Rows(rows))
        else:
            layers.append(layer)
    return LayerRows(layers)
