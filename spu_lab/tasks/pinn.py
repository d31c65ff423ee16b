"""Differential equations for physics-informed networks, with known solutions.

Definitions, numbers of points and network are those of arXiv 2405.15603: a network with one hidden layer of 64 tanh
units, in float64; half the mean square of the residual inside, plus half that of the error on the boundary. The points
are drawn once, from the uniform distribution, so the loss has no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HIDDEN = 64
"""Units of the hidden layer."""

GRID = 51
"""Points a coordinate at which the error in two dimensions is evaluated."""

SAMPLE = 10_000
"""Random points at which the error is evaluated in more dimensions, the same ones for all seeds."""


@dataclass(frozen=True)
class Equation:
    """A linear equation Σᵢ first[i] ∂ᵢu + Σᵢ second[i] ∂ᵢᵢu = source on the unit cube of d coordinates.

    Attributes:
        name: in results.
        title: for people.
        first: coefficients of the first derivatives, d of them.
        second: coefficients of the second derivatives, d of them.
        source: the right-hand side at points, from shape (n, d) to (n, 1).
        solution: u there, likewise.
        draw_boundary: draws so many points, shape (n, d), where u is prescribed.
        interior: number of points inside.
        boundary: number of points on the boundary.
    """

    name: str
    title: str
    first: tuple[float, ...]
    second: tuple[float, ...]
    source: Callable[[Tensor], Tensor]
    solution: Callable[[Tensor], Tensor]
    draw_boundary: Callable[[int, torch.Generator], Tensor]
    interior: int
    boundary: int

    @property
    def coordinates(self) -> int:
        """Number of coordinates d, time included."""
        return len(self.second)

    @property
    def parameters(self) -> int:
        """Number of parameters N of the network."""
        return HIDDEN * (self.coordinates + 2) + 1

    def residual(self, network: nn.Sequential, points: Tensor) -> Tensor:
        """Return left-hand side less right-hand side of a network from `build` at points, shape (n, 1).

        The derivatives of w·tanh(Wx + b) are written out, which takes a fifth of the time of `torch.autograd.grad` in
        five dimensions.
        """
        hidden, _, output = network
        assert isinstance(hidden, nn.Linear)
        assert isinstance(output, nn.Linear)
        value = torch.tanh(hidden(points))
        slope = 1.0 - value.square()
        first, second = points.new_tensor(self.first), points.new_tensor(self.second)
        inner = hidden.weight @ first - 2.0 * value * (hidden.weight.square() @ second)
        return nn.functional.linear(slope * inner, output.weight) - self.source(points)

    def residual_of(self, function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        """Return the residual of any differentiable function, by automatic differentiation."""
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(points).sum(), points, create_graph=True)
        total = gradient @ points.new_tensor(self.first)
        for i, coefficient in enumerate(self.second):
            (second,) = torch.autograd.grad(gradient[:, i].sum(), points, create_graph=True)
            total = total + coefficient * second[:, i]
        return total[:, None] - self.source(points)

    def build(self, seed: int) -> nn.Sequential:
        """Return a fresh network; the same seed gives the same one, and torch's random numbers are left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Linear(self.coordinates, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)
            return nn.Sequential(*layers).double()

    def evaluation_points(self) -> Tensor:
        """Return the points at which the error is evaluated, shape (n, d)."""
        if self.coordinates == 2:
            ticks = torch.linspace(0.0, 1.0, GRID, dtype=torch.float64)
            return torch.cartesian_prod(ticks, ticks)
        return _uniform(SAMPLE, self.coordinates, torch.Generator().manual_seed(0))


class Problem:
    """An equation at points that are drawn once.

    Args:
        equation: what to solve.
        seed: of the points.
        interior: number of points inside; by default that of the equation.
        boundary: number of points on the boundary, likewise.

    Attributes:
        criterion: the mean square, called once with the residuals and once with the boundary.
    """

    def __init__(
        self, equation: Equation, seed: int, *, interior: int | None = None, boundary: int | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.equation, self.criterion = equation, nn.MSELoss()
        self._interior = _uniform(interior or equation.interior, equation.coordinates, generator)
        self._boundary = equation.draw_boundary(boundary or equation.boundary, generator)
        self._zero = torch.zeros(len(self._interior), 1, dtype=torch.float64)
        self._prescribed = equation.solution(self._boundary)
        self._evaluated = equation.evaluation_points()
        self._expected = equation.solution(self._evaluated)

    @property
    def rows(self) -> int:
        """Number of points, which is that of the curvature's rows m."""
        return len(self._interior) + len(self._boundary)

    def loss(self, network: nn.Sequential) -> Tensor:
        """Return ½ (mean square residual inside + mean square error on the boundary)."""
        inside: Tensor = self.criterion(self.equation.residual(network, self._interior), self._zero)
        outside: Tensor = self.criterion(network(self._boundary), self._prescribed)
        return 0.5 * (inside + outside)

    @torch.no_grad()
    def error(self, function: Callable[[Tensor], Tensor]) -> float:
        """Return the relative L2 error |u − u*| / |u*| at the evaluation points."""
        return float((function(self._evaluated) - self._expected).norm() / self._expected.norm())


def _uniform(points: int, coordinates: int, generator: torch.Generator) -> Tensor:
    return torch.rand(points, coordinates, generator=generator, dtype=torch.float64)


def _on_faces(points: int, coordinates: int, generator: torch.Generator) -> Tensor:
    """Return points on the faces of the unit cube, a face drawn for each."""
    drawn = _uniform(points, coordinates, generator)
    axis = torch.randint(coordinates, (points,), generator=generator)
    drawn[torch.arange(points), axis] = torch.randint(2, (points,), generator=generator).double()
    return drawn


def _product_of_sines(points: Tensor) -> Tensor:
    return torch.sin(math.pi * points).prod(1, keepdim=True)


def _sum_of_cosines(points: Tensor) -> Tensor:
    return torch.cos(math.pi * points).sum(1, keepdim=True)


def _decaying_sine(points: Tensor) -> Tensor:
    """Return e^{−π² t/4} sin πx, for points (t, x)."""
    return torch.exp(-0.25 * math.pi**2 * points[:, :1]) * torch.sin(math.pi * points[:, 1:])


def _walls_and_start(points: int, generator: torch.Generator) -> Tensor:
    """Return points (t, x): one half on the walls x = 0 and 1 at random times, the other at t = 0."""
    times = _uniform(points // 2, 1, generator)
    walls = torch.cat([times, _on_faces(points // 2, 1, generator)], dim=1)
    places = _uniform(points - points // 2, 1, generator)
    return torch.cat([walls, torch.cat([torch.zeros_like(places), places], dim=1)])


HEAT = Equation(
    name="heat-1d",
    title="Heat 1+1D",
    first=(1.0, 0.0),
    second=(0.0, -0.25),
    source=lambda points: torch.zeros_like(points[:, :1]),
    solution=_decaying_sine,
    draw_boundary=_walls_and_start,
    interior=900,
    boundary=120,
)
"""∂ₜu = ¼ ∂ₓₓu."""

POISSON_2D = Equation(
    name="poisson-2d",
    title="Poisson 2D",
    first=(0.0, 0.0),
    second=(1.0, 1.0),
    source=lambda points: -2.0 * math.pi**2 * _product_of_sines(points),
    solution=_product_of_sines,
    draw_boundary=lambda points, generator: _on_faces(points, 2, generator),
    interior=900,
    boundary=120,
)
"""Δu = −2π² sin πx sin πy."""

POISSON_5D = Equation(
    name="poisson-5d",
    title="Poisson 5D",
    first=(0.0,) * 5,
    second=(1.0,) * 5,
    source=lambda points: -(math.pi**2) * _sum_of_cosines(points),
    solution=_sum_of_cosines,
    draw_boundary=lambda points, generator: _on_faces(points, 5, generator),
    interior=3_000,
    boundary=500,
)
"""Δu = −π² Σᵢ cos πxᵢ."""

EQUATIONS = (HEAT, POISSON_2D, POISSON_5D)
