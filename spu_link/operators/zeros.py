"""Jacobian rows of parameters that a batch does not use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spu_link.operators.embedding import EmbeddingRows


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

    def map(self, function: Callable[[Tensor], Tensor]) -> EmbeddingRows:  # type: ignore[override]
        """The block on the wire, with the zeros after `function`."""
        cotangents = function(self.cotangents)
        return EmbeddingRows(self.indices.to(cotangents.device), cotangents, embeddings=self.embeddings)
