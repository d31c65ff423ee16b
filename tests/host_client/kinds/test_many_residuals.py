"""Kind J: many residuals with second derivatives of a small network, as physics-informed training has them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from host_client.curvature import Capture
from tests.host_client.kinds.reference import TOLERANCE, double

pytestmark = [
    pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback"),
    pytest.mark.timeout(120),
]

RESIDUALS = 1020


def _derivative(u: Tensor, x: Tensor) -> Tensor:
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return du


def _heat(net: nn.Module, x: Tensor) -> Tensor:
    """u_t − u_xx at points (t, x), shape (n, 1)."""
    x = x.clone().requires_grad_()
    first = _derivative(net(x), x)
    return first[:, :1] - _derivative(first[:, 1:], x)[:, 1:]


def _poisson(net: nn.Module, x: Tensor) -> Tensor:
    """u_tt + u_xx, by a derivative of each."""
    x = x.clone().requires_grad_()
    first = _derivative(net(x), x)
    return _derivative(first[:, 0], x)[:, :1] + _derivative(first[:, 1], x)[:, 1:]


def _burgers(net: nn.Module, x: Tensor) -> Tensor:
    """u_t + u u_x − 0.1 u_xx."""
    x = x.clone().requires_grad_()
    u = net(x)
    first = _derivative(u, x)
    return first[:, :1] + u * first[:, 1:] - 0.1 * _derivative(first[:, 1:], x)[:, 1:]


def _rows(net: nn.Module, residual: str, points: Tensor) -> Tensor:
    """The residuals' gradients in the parameters, one for each point, by torch.func; shape (n, N)."""

    def u(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
        value: Tensor = functional_call(net, parameters, (point[None],))
        return value[0, 0]

    def of_point(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
        first = grad(u, argnums=1)
        hessian = jacrev(first, argnums=1)(parameters, point)
        t, x = first(parameters, point)
        if residual == "heat":
            return t - hessian[1, 1]
        if residual == "Poisson":
            return hessian[0, 0] + hessian[1, 1]
        return t + u(parameters, point) * x - 0.1 * hessian[1, 1]

    parameters = {name: p.detach() for name, p in net.named_parameters()}
    rows = vmap(grad(of_point), in_dims=(None, 0))(parameters, points)
    return torch.cat([rows[name].flatten(1) for name in parameters], 1)


@pytest.mark.parametrize(("name", "residual"), [("heat", _heat), ("Poisson", _poisson), ("Burgers", _burgers)])
def test_rows_of_1020_residuals(name: str, residual: object) -> None:
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).double()
    assert sum(p.numel() for p in net.parameters()) == 257
    twin, criterion, points = copy.deepcopy(net), nn.MSELoss(), double(RESIDUALS, 2)
    capture = Capture(net, criterion)
    z = residual(net, points)  # type: ignore[operator]
    criterion(z, torch.zeros_like(z)).backward()
    a = capture.operator_of_gradients().dense()
    expected = _rows(twin, name, points) * (2 / RESIDUALS) ** 0.5
    assert a.shape == expected.shape
    error = (a.T @ a - expected.T @ expected).abs().max() / (expected.T @ expected).abs().max()
    assert error <= TOLERANCE
    # The order of rows and the sign of each are free: their norms are not.
    torch.testing.assert_close(a.norm(dim=1).sort().values, expected.norm(dim=1).sort().values, rtol=1e-9, atol=1e-12)
