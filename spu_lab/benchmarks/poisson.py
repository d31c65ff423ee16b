"""The rows of a physics-informed network: by capture in the ordinary loop, and by hand with `torch.func`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

from host_client.curvature import Capture
from spu_lab.benchmarks.timing import Subjects
from spu_link.operators import LayerRows, stack

INTERIOR, BOUNDARY = 900, 120


class Poisson:
    """−Δu = 2π² sin(πx) sin(πy) on the unit square, u = 0 on its boundary, by a network 2-64-1; N = 257, in float64.

    Attributes:
        model: the network.
        criterion: the mean square of its input.
        interior: points inside, shape (900, 2).
        boundary: points on the boundary, shape (120, 2).
        source: 2π² sin(πx) sin(πy) inside, shape (900, 1).
    """

    def __init__(self, interior: int = INTERIOR, boundary: int = BOUNDARY) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).double()
        self.criterion = nn.MSELoss()
        self.interior = torch.rand(interior, 2, dtype=torch.float64, requires_grad=True)
        self.boundary = torch.rand(boundary, 2, dtype=torch.float64)
        self.boundary[torch.arange(boundary), torch.arange(boundary) % 2] = (torch.arange(boundary) // 2 % 2).double()
        self.source = 2 * math.pi**2 * torch.sin(math.pi * self.interior.detach()).prod(1, keepdim=True)
        self._no_residual, self._no_value = torch.zeros_like(self.source), self.boundary.new_zeros(boundary, 1)

    def residual(self) -> Tensor:
        """Δu + source inside, shape (900, 1), as it is written in a loop."""
        (du,) = torch.autograd.grad(self.model(self.interior).sum(), self.interior, create_graph=True)
        (dux,) = torch.autograd.grad(du[:, 0].sum(), self.interior, create_graph=True)
        (duy,) = torch.autograd.grad(du[:, 1].sum(), self.interior, create_graph=True)
        return dux[:, :1] + duy[:, 1:] + self.source

    def loss(self) -> Tensor:
        """The loss of a loop, which differentiates it: that of the residual and that of the boundary."""
        value: Tensor = self.criterion(self.residual(), self._no_residual)
        value = value + self.criterion(self.model(self.boundary), self._no_value)
        return value

    def capturing(self) -> Callable[[], LayerRows]:
        """Forward passes with derivatives, and capture; returns the operator of both losses."""
        operators: list[LayerRows] = []
        capture = Capture(self.model, self.criterion, on_operator=operators.append)

        def captured() -> LayerRows:
            assert capture.model is self.model  # which keeps the capture alive
            operators.clear()
            self.loss()
            return stack(operators, [1.0] * len(operators), [1] * len(operators))

        return captured

    def by_vmap(self) -> dict[str, Callable[[], Tensor]]:
        """Three ways to write the Laplacian; each function gives the Jacobian's rows in full, (1020, 257)."""
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        interior, source = self.interior.detach(), self.source[:, 0]

        def u(parameters: Mapping[str, Tensor], point: Tensor) -> Tensor:
            value: Tensor = functional_call(self.model, dict(parameters), (point[None],))
            return value[0, 0]

        gradient = grad(u, argnums=1)

        def component(parameters: Mapping[str, Tensor], point: Tensor, number: int) -> Tensor:
            second: Tensor = grad(lambda p: gradient(parameters, p)[number])(point)[number]
            return second

        laplacians: dict[str, Callable[[Mapping[str, Tensor], Tensor], Tensor]] = {
            "hessian": lambda p, x: hessian(u, argnums=1)(p, x).diagonal().sum(),
            "jacrev": lambda p, x: jacrev(gradient, argnums=1)(p, x).diagonal().sum(),
            "grad": lambda p, x: component(p, x, 0) + component(p, x, 1),
        }

        def rows_by(laplacian: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Callable[[], Tensor]:
            def residual(parameters: Mapping[str, Tensor], point: Tensor, source: Tensor) -> Tensor:
                return laplacian(parameters, point) + source

            def rows() -> Tensor:
                inside = vmap(grad(residual), (None, 0, 0))(parameters, interior, source)
                outside = vmap(grad(u), (None, 0))(parameters, self.boundary)
                return torch.cat([torch.cat([inside[name], outside[name]]).flatten(1) for name in parameters], dim=1)

            return rows

        return {name: rows_by(laplacian) for name, laplacian in laplacians.items()}


def check_rows(interior: int = INTERIOR, boundary: int = BOUNDARY) -> dict[str, float]:
    """Return the relative differences of F v, for one random v, between capture and the ways of `torch.func`.

    Raises:
        ArithmeticError: when they are more than rounding.
    """
    problem = Poisson(interior, boundary)
    v = torch.randn(257, dtype=torch.float64)
    ours = problem.capturing()().curvature(v)
    sizes = torch.tensor([interior, boundary])
    weights = (2.0 / sizes.double()).repeat_interleave(sizes)
    found = {}
    for name, way in problem.by_vmap().items():
        rows = way()
        found[f"pinn_{name}"] = float((rows.T @ (weights * (rows @ v)) - ours).norm() / ours.norm())
    if max(found.values()) > 1e-9:
        raise ArithmeticError(f"the ways of computing F v of the residuals differ: {found}")
    return found


def ours(interior: int = INTERIOR, boundary: int = BOUNDARY) -> Subjects:
    """The rows by capture."""
    return {"rows": Poisson(interior, boundary).capturing()}


def by_vmap(interior: int = INTERIOR, boundary: int = BOUNDARY) -> Subjects:
    """The rows by `torch.func`."""
    return Poisson(interior, boundary).by_vmap()
