"""Looking rows up in a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from host_client.curvature.layouts import Layout
from host_client.curvature.rules.base import Operation, Rules, ToRows
from host_client.curvature.rules.broadcast import Broadcast


@dataclass
class Embedding(Operation):
    """y = W[indices].

    Attributes:
        indices: of any shape.
        padding: the row of W that is not trained.
        table: shape (embeddings, d) of W.
        seen: the function that spreads y over the samples, with y for its `role`, where one table of y serves all of
            them (positions); the cotangents are then those of its output.
    """

    roles: dict[str, Tensor]
    indices: Tensor
    padding: int | None
    table: tuple[int, int]
    seen: tuple[Broadcast, str] | None = None

    def sample_dims(self, shape: Sequence[int], roles: Collection[str]) -> Sequence[int]:
        """All but the features."""
        return self.seen[0].sample_dims(shape, (self.seen[1],)) if self.seen else range(len(shape) - 1)

    def looked_up(self, layout: Layout) -> Tensor:
        """The indices by sample, shape (b, p)."""
        if self.seen:
            return self.indices.reshape(1, -1).expand(layout.samples, -1)
        return layout.by_sample(self.indices, 0).reshape(layout.samples, -1)

    def cotangents(self, layout: Layout, dtype: torch.dtype) -> ToRows:
        """From cotangents to those by sample, (k, b, p, d), of this dtype, zero where the index is the padding."""
        d = self.table[1]
        before = self.seen and self.seen[0].rows(self.seen[1], layout, dtype)
        padded = None if self.padding is None else (self.looked_up(layout) == self.padding)[..., None]

        def cotangents(cotangents: Tensor) -> Tensor:
            delta = before(cotangents) if before else layout.by_sample(cotangents, 1)
            delta = delta.reshape(len(cotangents), layout.samples, -1, d)
            return delta if padded is None else delta.masked_fill(padded, 0.0)

        return cotangents

    def rows(self, role: str, layout: Layout, dtype: torch.dtype) -> ToRows:
        """Rows with the cotangents added where they were looked up."""
        embeddings, d = self.table
        indices = self.looked_up(layout)
        places = (indices + torch.arange(layout.samples, device=indices.device)[:, None] * embeddings).flatten()
        by_sample = self.cotangents(layout, dtype)

        def rows(cotangents: Tensor) -> Tensor:
            delta = by_sample(cotangents).flatten(1, 2)
            whole = delta.new_zeros(len(delta), layout.samples * embeddings, d)
            return whole.index_add_(1, places, delta).view(len(delta), layout.samples, -1)

        return rows


def _embedding(
    shape: torch.Size,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operation | None:
    if scale_grad_by_freq:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    return Embedding({"weight": weight}, input, padding_idx, (weight.shape[0], weight.shape[1]))


RULES: Rules = {F.embedding: _embedding}
