"""Motion under F = AᵀA, in sample space: nothing of size N × N, and A only through its products.

For any scalar function h, h(F + λI) = h(λ)·I + Aᵀ k(AAᵀ) A with k(s) = (h(λ+s) − h(λ))/s. A step costs one product with
A, one with Aᵀ, and functions of the m × m Gram matrix AAᵀ between them, by one of two routes: an eigendecomposition,
done once a program, or the Lanczos process, done once a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from spu_link.cached import cached_property
from spu_link.operators import FactorOperator
from spu_server.dynamics.eigen import Table
from spu_server.dynamics.functions import ScalarFunction, Vector, at, response, slope
from spu_server.dynamics.lanczos import FunctionOutput, energy
from spu_server.dynamics.routes import Routes
from spu_server.dynamics.transition import Progress, Transition


@dataclass
class HeldResults:
    """Results for A that hold under any drive.

    Attributes:
        routes: functions of the Gram matrix.
        last: the state that the last step led to, and A times it.
    """

    routes: Routes
    last: tuple[Tensor, Tensor] | None = None


class FactorTransition(Transition):
    """Works in sample space. The Gram matrix and A b are computed once."""

    operator: FactorOperator

    def __init__(
        self, operator: FactorOperator, drive: Tensor, *, damping: float, noise: float, held: HeldResults | None = None
    ) -> None:
        super().__init__(operator, drive, damping=damping, noise=noise)
        self._held = held or HeldResults(Routes(operator.gram, energy))

    def under(self, drive: Tensor, *, damping: float, noise: float) -> FactorTransition:
        """The motion with the same A under another drive."""
        return FactorTransition(self.operator, drive, damping=damping, noise=noise, held=self._held)

    def progress(self, state: Tensor | None) -> Progress:
        """Of the routes, and what A makes of `state` if a step has led to it."""
        last = self._held.last
        image = last[1] if last is not None and state is last[0] else None
        return Progress(self._routes.steps, self._routes.basis is not None, image)

    def resume(self, state: Tensor | None, progress: Progress) -> None:
        """Take up the routes and the image."""
        if progress.image is not None:
            if state is None or progress.image.shape != self.operator.shape[:1]:
                raise ValueError(f"an image of shape {tuple(progress.image.shape)} for {self.operator.shape[0]} rows")
            self._held.last = state, progress.image
        self._routes.resume(progress.steps, progress.decomposed)

    def fork(self) -> Self:
        """With routes and an image of its own."""
        other = copy(self)
        other._held = HeldResults(copy(self._routes), self._held.last)  # noqa: SLF001 - of the same class
        return other

    def adopt(self, other: Self) -> None:
        """Take over the routes and the image."""
        self._routes.adopt(other._routes)
        self._held.last = other._held.last

    @property
    def _routes(self) -> Routes:
        return self._held.routes

    @cached_property
    def _drive_image(self) -> Tensor:
        """Return A b, always computed by itself: together with other vectors its last bits may differ."""
        return self.operator.apply(self.drive[None])[0].to("cpu", torch.float64)

    def prepare(self) -> None:
        """Compute the Gram matrix and A b, and decompose a small Gram matrix."""
        self._drive_image  # noqa: B018 - computed on first use
        self._routes.prepare()

    def _outputs(self, table: Table, inputs: Sequence[Tensor | None], duration: float) -> Sequence[Tensor]:
        images = self._images(inputs)
        weights = self._weights(table, inputs, images, duration)
        outputs = self.operator.adjoint(weights.to(self.drive.device)).unbind()
        for output, row in zip(outputs, table, strict=True):
            for h, v in zip(row, inputs, strict=False):
                if v is not None:
                    output.add_(v, alpha=at(h, self.damping, duration))
        # What A makes of the new state is known without A: the next step, or the next program's start, asks for it.
        image = self._routes.matrix @ weights[0]
        for h, v in zip(table[0], images, strict=False):
            image.add_(v, alpha=at(h, self.damping, duration))
        self._held.last = outputs[0], image
        return outputs

    def _weights(self, table: Table, inputs: Sequence[Tensor | None], images: Tensor, duration: float) -> Tensor:
        """Σ_j k_ij(AAᵀ) A v_j, shape (outputs, m)."""
        if self._routes.lanczos_pays(at(response, self.damping, duration)):
            weights = self._by_lanczos(table, inputs, images.numpy(), duration)
            if weights is not None:
                return torch.from_numpy(weights)
        return self._routes.decompose().slopes(table, images, self.damping, duration)

    def _images(self, inputs: Sequence[Tensor | None]) -> Tensor:
        """A v_j for every input, shape (inputs, m); only what is not known is computed, all at once."""
        images = torch.zeros(len(inputs), self.operator.shape[0], dtype=torch.float64)
        new: dict[int, Tensor] = {}
        for j, v in enumerate(inputs):
            known = self._known_image(v)
            if known is not None:
                images[j] = known
            elif v is not None:
                new[j] = v
        if new:
            vectors = list(new.values())
            products = self.operator.apply(torch.stack(vectors) if len(vectors) > 1 else vectors[0][None])
            images[list(new)] = products.to(images)
        return images

    def _known_image(self, v: Tensor | None) -> Tensor | None:
        if v is self.drive:
            return self._drive_image
        last = self._held.last
        if last is not None and v is last[0]:
            return last[1]
        return None

    def _by_lanczos(
        self, table: Table, inputs: Sequence[Tensor | None], images: Vector, duration: float
    ) -> Vector | None:
        """Return the same as `_weights`; None if a process does not converge.

        Start and drive share one process. Since decay = 1 − f·response and response = Δ − f·integrated_response, with
        r = b − (F + λI) x and g the drive's function, each output is h_x(λ) x + g(λ) b + Aᵀ[k_g(AAᵀ) A r − g(λ) A x].
        """
        (x, b), noises = images[:2], images[2:]
        pulled = self._routes.times(x)
        residual = b - self.damping * x - pulled
        weights = np.empty((len(table), len(x)))
        targets = []
        for row, weight in zip(table, weights, strict=True):
            h_x, g = (at(h, self.damping, duration) for h in row[:2])
            weight[:] = -g * x
            image = h_x * x + g * b
            square = _square((h_x, inputs[0]), (g, inputs[1])) - 2.0 * g * (x @ image) + g * g * (x @ pulled)
            targets.append(FunctionOutput(self._slope(row[1], duration), square, image - g * pulled))
        if not self._add(weights, residual, targets):
            return None
        for j, noise in enumerate(noises, 2):
            drawn = [i for i, row in enumerate(table) if j < len(row)]
            targets = []
            for i in drawn:
                h = at(table[i][j], self.damping, duration)
                targets.append(FunctionOutput(self._slope(table[i][j], duration), _square((h, inputs[j])), h * noise))
            if not self._add(weights[drawn[0] :], noise, targets):
                return None
        return weights

    def _slope(self, function: ScalarFunction, duration: float) -> Callable[[Vector], Vector]:
        return lambda s: slope(function, self.damping, s, duration)

    def _add(self, weights: Vector, start: Vector, targets: Sequence[FunctionOutput]) -> bool:
        """Add the products for `targets` to the rows of `weights`; False if the process does not converge."""
        products = self._routes.process(start, targets)
        if products is None:
            return False
        weights += products
        return True


def _square(*terms: tuple[float, Tensor | None]) -> float:
    """‖Σ_j h_j v_j‖²."""
    vectors = [(h, v) for h, v in terms if v is not None]
    return sum(h * g * float(u @ v) for h, u in vectors for g, v in vectors)
