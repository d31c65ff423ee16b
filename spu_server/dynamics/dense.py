"""Motion under a curvature that is best held in full: given so, or a factor with no fewer rows than columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor

from spu_link.operators import Operator
from spu_server.dynamics.eigen import Table
from spu_server.dynamics.functions import ScalarFunction, Vector, at, response
from spu_server.dynamics.lanczos import FunctionOutput, euclidean
from spu_server.dynamics.routes import Routes
from spu_server.dynamics.transition import Progress, Transition


class DenseTransition(Transition):
    """Works with F itself, shape (N, N), in float64."""

    def __init__(
        self, operator: Operator, drive: Tensor, *, damping: float, noise: float, routes: Routes | None = None
    ) -> None:
        super().__init__(operator, drive, damping=damping, noise=noise)
        self._routes = routes or Routes(operator.curvature_matrix, euclidean)

    def under(self, drive: Tensor, *, damping: float, noise: float) -> DenseTransition:
        """The motion with the same F under another drive."""
        return DenseTransition(self.operator, drive, damping=damping, noise=noise, routes=self._routes)

    def progress(self, state: Tensor | None) -> Progress:
        """Of the routes alone."""
        return Progress(self._routes.steps, self._routes.basis is not None)

    def resume(self, state: Tensor | None, progress: Progress) -> None:
        """Take up the routes."""
        if progress.image is not None:
            raise ValueError("an image of the state, under a curvature held in full")
        self._routes.resume(progress.steps, progress.decomposed)

    def fork(self) -> Self:
        """With routes of its own."""
        other = copy(self)
        other._routes = copy(self._routes)  # noqa: SLF001 - of the same class
        return other

    def adopt(self, other: Self) -> None:
        """Take over the routes."""
        self._routes.adopt(other._routes)

    def prepare(self) -> None:
        """Make F, and decompose a small one."""
        self._routes.prepare()

    def _outputs(self, table: Table, inputs: Sequence[Tensor | None], duration: float) -> Sequence[Tensor]:
        vectors = torch.stack([torch.zeros_like(self.drive) if v is None else v for v in inputs])
        if self._routes.lanczos_pays(at(response, self.damping, duration)):
            outputs = self._by_lanczos(table, vectors.numpy(), duration)
            if outputs is not None:
                return torch.from_numpy(outputs).unbind()
        return self._routes.decompose().functions(table, vectors, self.damping, duration).unbind()

    def _by_lanczos(self, table: Table, inputs: Vector, duration: float) -> Vector | None:
        """Return the same as `_outputs`, shape (outputs, N); None if a process does not converge.

        Start and drive share one process: with r = b − (F + λI) x and g the drive's function, each output is
        h_x(0) x + g(F + λI) r, since decay = 1 − f·response and response = Δ − f·integrated_response.
        """
        (x, b), noises = inputs[:2], inputs[2:]
        residual = b - self.damping * x - self._routes.times(x)
        outputs = np.stack([at(row[0], 0.0, duration) * x for row in table])
        everything = [(residual, [row[1] for row in table], outputs)]
        for j, noise in enumerate(noises, 2):
            drawn = [i for i, row in enumerate(table) if j < len(row)]
            everything.append((noise, [table[i][j] for i in drawn], outputs[drawn[0] :]))
        for start, functions, parts in everything:
            targets = [
                FunctionOutput(self._shift(h, duration), float(part @ part), part)
                for h, part in zip(functions, parts, strict=True)
            ]
            products = self._routes.process(start, targets)
            if products is None:
                return None
            parts += products
        return outputs

    def _shift(self, function: ScalarFunction, duration: float) -> Callable[[Vector], Vector]:
        return lambda s: function(self.damping + s, duration)
