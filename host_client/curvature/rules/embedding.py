"""Looking rows up in a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from host_client.curvature.axis import Axis
from host_client.curvature.graph import Call
from host_client.curvature.rules.affine import Broadcast
from host_client.curvature.rules.base import Axes, Operation, Rule, ToRows, with_one
from host_client.curvature.rules.shapes import signed


@dataclass
class TableLookup(Operation):
    """y = W[indices].

    Attributes:
        indices: of any shape.
        padding: the row of W that is not trained; negative for none.
        table: shape (embeddings, d) of W.
        spread: the function that spreads y over the samples, with the role of y in it, where one table of y serves all
            of them (positions); the cotangents are then those of its output.
    """

    roles: dict[int, str]
    shape: torch.Size
    indices: Tensor
    padding: int
    table: tuple[int, int]
    spread: tuple[Broadcast, str] | None = None

    def spread_by(self, operation: Broadcast, role: str) -> TableLookup:
        """Return the same table where another function spreads its rows over the samples."""
        return replace(self, spread=(operation, role), shape=operation.shape)

    def looked_up(self, axis: Axis) -> Tensor:
        """The indices by sample, shape (count, p)."""
        if self.spread:
            return self.indices.reshape(1, -1).expand(axis.count, -1)
        return axis.by_sample(self.indices, 0).reshape(axis.count, -1)

    def cotangents(self, axis: Axis, dtype: torch.dtype) -> ToRows:
        """From cotangents to those by sample, (k, count, p, d), of this dtype, zero where the index is the padding."""
        d = self.table[1]
        before = self.spread and self.spread[0].rows(self.spread[1], axis, dtype)
        padded = None if self.padding < 0 else (self.looked_up(axis) == self.padding)[..., None]

        def cotangents(cotangents: Tensor) -> Tensor:
            delta = before(cotangents) if before else axis.by_sample(cotangents, 1)
            delta = delta.reshape(len(cotangents), axis.count, -1, d)
            return delta if padded is None else delta.masked_fill(padded, 0.0)

        return cotangents

    def rows(self, role: str, axis: Axis, dtype: torch.dtype) -> ToRows:
        """Rows with the cotangents added where they were looked up."""
        embeddings, d = self.table
        indices = self.looked_up(axis)
        places = (indices + torch.arange(axis.count, device=indices.device)[:, None] * embeddings).flatten()
        by_sample = self.cotangents(axis, dtype)

        def rows(cotangents: Tensor) -> Tensor:
            delta = by_sample(cotangents).flatten(1, 2)
            whole = delta.new_zeros(len(delta), axis.count * embeddings, d)
            return whole.index_add_(1, places, delta).view(len(delta), axis.count, -1)

        return rows


class LookUp(Rule):
    """`torch.nn.functional.embedding`."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in any dimension of the indices; the table serves all of them."""
        axis = with_one(axes)
        return [None] if axis is not None and axis.dim < len(call.outputs[0]) - 1 else None

    def operation(self, call: Call) -> Operation | None:
        """The table."""
        indices, padding = call.saved_tensor("indices"), call.saved("padding_idx")
        shape: Any = call.argument(0)
        if call.saved("scale_grad_by_freq"):
            return None
        return TableLookup({0: "weight"}, call.outputs[0], indices, signed(padding), (shape[0], shape[1]))


RULES: dict[str, Rule] = {"EmbeddingBackward0": LookUp()}
"""Rules by the name of the node."""
