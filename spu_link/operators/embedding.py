"""Jacobian rows of an embedding, from the indices it looked up and its cotangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor

from spu_link.errors import mismatch
from spu_link.operators.base import (
    CHUNK_ELEMENTS,
    ArrayLike,
    BlockFactor,
    Geometry,
    Shapes,
    contract_cotangents,
    weight_cotangents,
)


class EmbeddingRows(BlockFactor):
    """Rows of the Jacobian of an embedding y_ip = W[index_ip] with respect to W of shape (embeddings, d).

    Row (c, i) of A is zero but for the rows of W that sample i has looked up: δ_cip is added at row index_ip for every
    position p. m = c·b and N = embeddings·d; nothing here takes memory for more than the rows that were looked up,
    except what has the N elements of a result.

    Args:
        indices: shape (b, p), int32 or int64. That they are in range is checked where the operator is loaded.
        cotangents: δ, shape (c, b, p, d), with zeros where a position counts for nothing (padding).
        embeddings: number of rows of W.

    Raises:
        InvalidProgram: when shapes or dtypes do not fit together.
    """

    kind = "embedding"
    fields = ("embeddings",)
    dimensions: ClassVar = {"indices": (2,), "cotangent": (4,)}

    def __init__(self, indices: ArrayLike, cotangents: ArrayLike, *, embeddings: int) -> None:
        self.embeddings = embeddings
        self.indices, self.cotangents = self._hold(indices, cotangents)

    def apply(self, v: Tensor) -> Tensor:
        """A v: the rows of `v` that each sample looks up, seen through the cotangents."""
        shape = self.embeddings, self.cotangents.shape[3]
        x = v.unflatten(-1, shape).reshape(-1, *shape)
        y = x.index_select(1, self.indices.flatten()).to(self.dtype)
        return contract_cotangents(self.cotangents, y).reshape(*v.shape[:-1], -1).to(v.dtype)

    def adjoint(self, w: Tensor) -> Tensor:
        """Aᵀ w: the cotangents weighted by `w` and summed over c, added where they were looked up."""
        d = self.cotangents.shape[3]
        delta = weight_cotangents(self.cotangents, w.to(self.dtype)).reshape(-1, self.indices.numel(), d).to(w.dtype)
        total = w.new_zeros(len(delta), self.embeddings, d).index_add_(1, self.indices.flatten(), delta)
        return total.view(*w.shape[:-1], -1)

    def add_gram(self, total: Tensor) -> None:
        """Add A Aᵀ: two samples overlap in the rows of W that both have looked up.

        The cotangents of one sample at one row are added up first. Then each row of W gives products between the
        samples that have it; the rows that equally many samples have are multiplied together.
        """
        c, b, _, d = self.cotangents.shape
        samples = torch.arange(b, device=self.indices.device)[:, None]
        pairs, place = torch.unique(self.indices.long() * b + samples, return_inverse=True)  # by row of W, then sample
        delta = self.cotangents.new_zeros(c, len(pairs), d)
        delta.index_add_(1, place.flatten(), self.cotangents.flatten(1, 2))
        delta = delta.transpose(0, 1).contiguous()
        sample = pairs % b
        _, counts = torch.unique_consecutive(pairs // b, return_counts=True)
        starts = counts.cumsum(0) - counts
        gram = torch.zeros(b * b, c, c, dtype=torch.float64, device=self.indices.device)
        for n in counts.unique().tolist():
            members = starts[counts == n, None] + torch.arange(n, device=starts.device)  # (rows of W, n samples)
            for some in members.split(max(1, CHUNK_ELEMENTS // (n * c * max(n * c, d)))):
                theirs = delta[some].view(-1, n * c, d)
                products = (theirs @ theirs.mT).view(-1, n, c, n, c).transpose(2, 3).to(gram.dtype)
                pair = sample[some][:, :, None] * b + sample[some][:, None, :]
                gram.index_add_(0, pair.flatten(), products.reshape(-1, c, c))
        total.view(c, b, c, b).add_(gram.view(b, b, c, c).permute(2, 0, 3, 1).to(total.device))

    def to_rows(self) -> Tensor:
        """A in full."""
        c, b, _, d = self.cotangents.shape
        place = self.indices + torch.arange(b, device=self.indices.device)[:, None] * self.embeddings
        rows = self.cotangents.new_zeros(c, b * self.embeddings, d)
        return rows.index_add_(1, place.flatten(), self.cotangents.flatten(1, 2)).view(c * b, -1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same indices, on the same device, with the cotangents after `function`."""
        cotangents = function(self.cotangents)
        return self.like(self.indices.to(cotangents.device), cotangents)

    @classmethod
    def shape_of(cls, geometry: Geometry, shapes: Shapes) -> tuple[int, int]:
        """(c·b, embeddings·d)."""
        indices, cotangents, embeddings = shapes["indices"], shapes["cotangent"], geometry["embeddings"]
        c, *seen, d = cotangents
        if tuple(seen) != indices:
            raise mismatch("embedding.cotangent", cotangents, f"(c, {indices[0]}, {indices[1]}, d) for these indices")
        if embeddings < 1:
            raise mismatch("embedding.embeddings", embeddings, "at least 1")
        return c * indices[0], embeddings * d
