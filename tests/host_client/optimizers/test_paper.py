"""TNGD on a stepped clock, compared with the paper's algorithm written down in dense float64 algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from host_client import TNGD, Session
from tests.host_client.optimizers.training import flat

STEPS, LR, DAMPING = 20, 0.2, 0.05


def _network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, torch.randn(STEPS, 16, 4).double(), torch.randint(3, (STEPS, 16))


def _curvature_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """F = Σ J_iᵀ H_i J_i / b with H_i = diag(p) − p pᵀ, and the gradient, both from J in full."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    blocks = jacrev(lambda given: functional_call(model, given, (x,)))(parameters)
    j = torch.cat([block.flatten(2) for block in blocks.values()], 2)  # (b, d, N)
    p = model(x).detach().softmax(1)
    h = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    residual = p - nn.functional.one_hot(y, p.shape[1])
    return torch.einsum("bdn,bde,bem->nm", j, h, j) / len(x), torch.einsum("bdn,bd->n", j, residual) / len(x)


def _relaxed(state: Tensor, f: Tensor, drive: Tensor, duration: float) -> Tensor:
    """x(t) = e^{−(F+λI)t} (x₀ − x*) + x*."""
    system = f + DAMPING * torch.eye(len(f), dtype=f.dtype)
    solution = torch.linalg.solve(system, drive)
    return torch.linalg.matrix_exp(-duration * system) @ (state - solution) + solution


def _papers_algorithm(analog_time: float, delay: float) -> Tensor:
    """The parameters after every step, shape (STEPS, N)."""
    model, inputs, targets = _network()
    path, state, before = [], None, None
    for x, y in zip(inputs, targets, strict=True):
        f, gradient = _curvature_and_gradient(model, x, y)
        state = gradient if state is None else _relaxed(state, *before, delay)
        state = _relaxed(state, f, gradient, analog_time)
        before = f, gradient
        nn.utils.vector_to_parameters(flat(model) - LR * state, model.parameters())
        path.append(flat(model))
    return torch.stack(path)


@pytest.mark.parametrize("delay", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("analog_time", [0.0, 5.0, 50.0])
def test_analog_time_and_delay_give_what_the_papers_algorithm_gives(
    session: Session, analog_time: float, delay: float
) -> None:
    model, inputs, targets = _network()
    criterion = nn.CrossEntropyLoss()
    optimizer = TNGD(model, criterion, session, lr=LR, damping=DAMPING, analog_time=analog_time, delay=delay)
    start, path = flat(model), []
    for x, y in zip(inputs, targets, strict=True):
        criterion(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        path.append(flat(model))
    expected = _papers_algorithm(analog_time, delay)
    error = (torch.stack(path) - expected).norm(dim=1) / (expected - start).norm(dim=1)
    assert error.max() < 1e-4, f"largest error {error.max():.1e}"
    assert (expected[-1] - start).norm() > 0.1 * start.norm()  # it went somewhere
