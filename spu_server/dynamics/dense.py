"""Motion under a curvature that is given, or best held, in full."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spu_server.dynamics.eigen import Eigenbasis, Table
from spu_server.dynamics.transition import Transition


class DenseTransition(Transition):
    """Works in the eigenvectors of F itself, shape (N, N), decomposed once."""

    _basis: Eigenbasis | None = None

    def prepare(self) -> None:
        """Decompose F."""
        if self._basis is None:
            self._basis = Eigenbasis(self.operator.dense().to(torch.float64).numpy())

    def _outputs(self, table: Table, inputs: Sequence[Tensor | None], duration: float) -> Tensor:
        self.prepare()
        assert self._basis is not None
        vectors = np.stack([np.zeros(len(self.drive)) if v is None else v.numpy() for v in inputs])
        return torch.from_numpy(self._basis.functions(table, vectors, self.damping, duration))
