"""Motion under a curvature that is best held in full: given so, or a factor with no fewer rows than columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from spu_link.operators import FactorOperator
from spu_link.operators.base import gram_of
from spu_server.dynamics.eigen import Eigenbasis, Table
from spu_server.dynamics.transition import Transition

STRETCH = 4096
"""Rows of a factor that AᵀA is accumulated from at a time."""


class DenseTransition(Transition):
    """Works in the eigenvectors of F itself, shape (N, N), decomposed once."""

    @cached_property
    def _basis(self) -> Eigenbasis:
        held = self.operator.dense()
        if isinstance(self.operator, FactorOperator):
            stretches = (rows.T.to(torch.float64) for rows in held.split(STRETCH))
            return Eigenbasis(gram_of(stretches, self.operator.parameters))
        return Eigenbasis(held.to(torch.float64))

    def prepare(self) -> None:
        """Decompose F."""
        self._basis  # noqa: B018 - computed on first use

    def _outputs(self, table: Table, inputs: Sequence[Tensor | None], duration: float) -> Sequence[Tensor]:
        vectors = torch.stack([torch.zeros_like(self.drive) if v is None else v for v in inputs])
        return self._basis.functions(table, vectors, self.damping, duration).unbind()
