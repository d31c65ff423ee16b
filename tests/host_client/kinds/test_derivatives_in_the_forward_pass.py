"""Kind D: what the criterion is given is, or holds, a derivative of the network in its input."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import NGD
from host_client.curvature import Capture
from tests.host_client.kinds.reference import Term, assert_same, captured, double, empirical, gauss_newton
from tests.networks import Function, parameter

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


def _network(inputs: int, outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def _derivative(u: Tensor, x: Tensor) -> Tensor:
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return du


def _energy_and_forces(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    x = x.clone().requires_grad_()
    energy = net(x)
    return [(energy, 1.0), (-_derivative(energy, x), 10.0)]


def _forces_alone(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    return _energy_and_forces(net, x)[1:]


def _pinn(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    """−u″ − u = f at points, and u = 0 at others, in a pass of their own."""
    x = x[:, :1].clone().requires_grad_()
    u = net(x)
    second = _derivative(_derivative(u, x), x)
    return [(-second - u, 1.0), (net(torch.tensor([[0.0], [1.0]], dtype=x.dtype)), 5.0)]


def _first_and_second(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    x = x[:, :1].clone().requires_grad_()
    u = net(x)
    first = _derivative(u, x)
    return [(u * first - 0.1 * _derivative(first, x), 1.0)]


def _second_alone(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    x = x[:, :1].clone().requires_grad_()
    return [(_derivative(_derivative(net(x), x), x), 1.0)]


def _hamiltonian(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    """(dq, dp) = (∂H/∂p, −∂H/∂q)."""
    x = x[:, :2].clone().requires_grad_()
    q, p = _derivative(net(x), x).chunk(2, 1)
    return [(torch.cat([p, -q], 1), 1.0)]


def _leapfrog(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    """Two steps of an integrator whose force is the derivative of a learnt potential."""
    q, p = x[:, :1].clone().requires_grad_(), x[:, 1:2]
    for _ in range(2):
        p = p - 0.1 * _derivative(net(q), q)
        q = q + 0.1 * p
    return [(torch.cat([q, p], 1), 1.0)]


def _flow(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    """Two Euler steps of a continuous normalising flow: the state and the integral of the divergence."""
    state, divergence = x[:, :2].clone().requires_grad_(), x.new_zeros(len(x))
    for _ in range(2):
        speed = net(state)
        trace = sum(_derivative(speed[:, i], state)[:, i] for i in range(2))
        state, divergence = state + 0.1 * speed, divergence - 0.1 * trace
    return [(torch.cat([state, divergence[:, None]], 1), 1.0)]


def _gradient_penalty(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    """A critic's output, and the norm of its gradient."""
    x = x.clone().requires_grad_()
    score = net(x)
    return [(score, 1.0), (_derivative(score, x).norm(dim=1), 10.0)]


def _score_matching(net: nn.Module, x: Tensor) -> list[tuple[Tensor, float]]:
    x = x.clone().requires_grad_()
    return [(_derivative(net(x).square(), x), 1.0)]


MODELS: dict[str, tuple[int, int, Callable[[nn.Module, Tensor], list[tuple[Tensor, float]]]]] = {
    "energy and forces": (3, 1, _energy_and_forces),
    "forces alone": (3, 1, _forces_alone),
    "residual with u and u'' and a boundary": (1, 1, _pinn),
    "residual with u u' and u''": (1, 1, _first_and_second),
    "residual of u'' alone": (1, 1, _second_alone),
    "Hamiltonian network": (2, 1, _hamiltonian),
    "steps of an integrator": (1, 1, _leapfrog),
    "continuous normalising flow": (2, 2, _flow),
    "gradient penalty": (3, 1, _gradient_penalty),
    "score": (3, 1, _score_matching),
}


def _expected(pairs: list[tuple[Tensor, float]], targets: list[Tensor], net: nn.Module) -> Tensor:
    terms: list[Term] = [
        (z, lambda z, t=target, w=weight: w * F.mse_loss(z, t))  # type: ignore[misc]
        for (z, weight), target in zip(pairs, targets, strict=True)
    ]
    return gauss_newton(terms, list(net.parameters()))


def _loss(criterion: nn.Module, pairs: list[tuple[Tensor, float]], targets: list[Tensor]) -> Tensor:
    total: Tensor = sum(w * criterion(z, t) for (z, w), t in zip(pairs, targets, strict=True))  # type: ignore[assignment]
    return total


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_in_the_users_loop(name: str) -> None:
    inputs, outputs, compute = MODELS[name]
    net = _network(inputs, outputs)
    twin, criterion = copy.deepcopy(net), nn.MSELoss()
    capture = Capture(net, criterion)
    for seed in range(2):
        x = double(4, 3, seed=seed)
        pairs = compute(twin, x)
        targets = [double(*z.shape, seed=seed + 3) for z, _ in pairs]
        assert_same(captured(capture, _loss(criterion, compute(net, x), targets)), _expected(pairs, targets, twin), net)


class Inside(nn.Module):
    """A network that gives out what a function computes of it."""

    def __init__(self, net: nn.Module, compute: Callable[[nn.Module, Tensor], list[tuple[Tensor, float]]]) -> None:
        super().__init__()
        self.net, self.compute = net, compute

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The inputs of the criterion."""
        return tuple(z for z, _ in self.compute(self.net, x))


@pytest.mark.parametrize(
    "name", ["energy and forces", "residual of u'' alone", "Hamiltonian network", "steps of an integrator"]
)
def test_derivatives_inside_the_model(name: str) -> None:
    inputs, outputs, compute = MODELS[name]
    model = Inside(_network(inputs, outputs), compute)
    twin, criterion = copy.deepcopy(model), nn.MSELoss()
    capture = Capture(model, criterion)
    x = double(4, 3)
    pairs = compute(twin.net, x)
    targets = [double(*z.shape, seed=3) for z, _ in pairs]
    found = [(z, w) for z, (_, w) in zip(model(x), pairs, strict=True)]
    assert_same(captured(capture, _loss(criterion, found, targets)), _expected(pairs, targets, twin), model)


def _func_grad(m: Function, x: Tensor) -> Tensor:
    """The gradient of a learnt energy in all inputs at once."""
    return m.head(torch.func.grad(lambda t: (m.body(t).tanh() @ m.out).sum())(x))  # type: ignore[operator, no-any-return]


def _func_vmap_of_grad(m: Function, x: Tensor) -> Tensor:
    """The same, sample by sample."""
    of_row = torch.func.grad(lambda row: m.body(row).tanh() @ m.out)  # type: ignore[operator]
    return m.head(torch.func.vmap(of_row)(x))  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("forward", [_func_grad, _func_vmap_of_grad], ids=["grad", "vmap"])
def test_derivatives_by_torch_func_inside_the_model(forward: Callable[[Function, Tensor], Tensor]) -> None:
    model = Function(forward, body=nn.Linear(4, 5), out=parameter(5), head=nn.Linear(4, 3)).double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    x, y = double(6, 4), torch.arange(6) % 3
    expected = gauss_newton([(twin(x), lambda z: F.cross_entropy(z, y))], list(twin.parameters()))
    assert_same(captured(Capture(model, criterion), criterion(model(x), y)), expected, model)


@pytest.mark.parametrize("name", ["residual of u'' alone", "Hamiltonian network"])
def test_gradients_of_each_sample_through_a_derivative(name: str) -> None:
    inputs, outputs, compute = MODELS[name]
    net = _network(inputs, outputs)
    twin, criterion = copy.deepcopy(net), nn.MSELoss()
    capture = Capture(net, criterion, curvature="empirical")
    x = double(4, 3)
    ((z, _),) = compute(twin, x)
    target = double(*z.shape, seed=3)
    losses = (z - target).square().flatten(1).sum(1)
    expected = empirical(losses, list(twin.parameters()), z.numel())
    assert_same(captured(capture, _loss(criterion, compute(net, x), [target])), expected, net)


def test_a_physics_informed_network_descends() -> None:
    """u″ = −sin on 20 points: without damage from a wrong F, 20 steps bring the loss down a hundredfold."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    criterion = nn.MSELoss()
    optimizer = NGD(net, criterion, lr=0.5, damping=1e-3)
    x = torch.linspace(0, 3, 20, dtype=torch.float64)[:, None]
    losses = []
    for _ in range(20):
        points = x.clone().requires_grad_()
        second = _derivative(_derivative(net(points), points), points)
        loss = criterion(second, -x.sin())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-2 * losses[0]
