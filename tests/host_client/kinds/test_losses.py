"""Kind I: torch's losses as modules and functions, alone, weighted and several together."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import NGD
from host_client.curvature import Capture
from tests.host_client.kinds.named_losses import LOSSES, OUTPUTS, SAMPLES, Loss
from tests.host_client.kinds.reference import (
    assert_same,
    captured,
    classes,
    double,
    fisher,
    gauss_newton,
)


def _network(outputs: int = OUTPUTS) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def _exact(loss: Loss, twin: nn.Module, x: Tensor) -> Tensor:
    smooth = loss.smooth or loss.function
    return gauss_newton([(twin(x), lambda z: smooth(z, loss.targets))], list(twin.parameters()))


@pytest.mark.parametrize("name", LOSSES)
def test_a_function_has_the_curvature_of_its_loss(name: str) -> None:
    loss, model, x = LOSSES[name], _network(), double(SAMPLES, 4)
    twin = copy.deepcopy(model)
    capture = Capture(model, loss.recognised)  # type: ignore[arg-type]
    found = captured(capture, loss.function(loss.given(model(x)), loss.targets))
    assert_same(found, _exact(loss, twin, x), model)


@pytest.mark.parametrize("name", ["cross entropy", "negative log-likelihood", "binary cross entropy", "Poisson"])
def test_draws_have_the_curvature_in_expectation(name: str) -> None:
    loss, model, x = LOSSES[name], _network(), double(SAMPLES, 4)
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    capture = Capture(model, loss.recognised, curvature="mc", samples=4000, generator=generator)  # type: ignore[arg-type]
    found = captured(capture, loss.function(loss.given(model(x)), loss.targets))
    expected = _exact(loss, twin, x)
    assert (found - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize("function", [False, True], ids=["module", "function"])
def test_gaussian_with_a_variance_of_its_own(function: bool) -> None:
    """The Fisher matrix of mean and variance: 1/v and 1/(2v²)."""
    model, x, t = _network(2), double(SAMPLES, 4), double(SAMPLES, seed=3)
    twin, criterion = copy.deepcopy(model), nn.GaussianNLLLoss()
    capture = Capture(model, F.gaussian_nll_loss if function else criterion)  # type: ignore[arg-type]
    loss = F.gaussian_nll_loss if function else criterion
    mean, spread = model(x).unbind(1)
    found = captured(capture, loss(mean, t, F.softplus(spread) + 0.1))
    mean, spread = twin(x).unbind(1)
    variance = F.softplus(spread) + 0.1
    v = variance.detach()
    information = torch.cat([1 / v, 1 / (2 * v.square())]) / SAMPLES
    expected = fisher(torch.cat([mean, variance]), information.diag(), list(twin.parameters()))
    assert_same(found, expected, model)


def test_several_criteria_each_with_its_weight() -> None:
    model, x, y, t = _network(4), double(SAMPLES, 4), classes(SAMPLES), double(SAMPLES, 1, seed=3)
    twin = copy.deepcopy(model)
    labels, values = nn.CrossEntropyLoss(), nn.MSELoss()
    capture = Capture(model, [labels, values])  # type: ignore[arg-type]
    z = model(x)
    found = captured(capture, labels(z[:, :3], y) + 0.5 * values(z[:, 3:], t))
    z = twin(x)
    expected = gauss_newton(
        [(z[:, :3], lambda z: F.cross_entropy(z, y)), (z[:, 3:], lambda z: 0.5 * F.mse_loss(z, t))],
        list(twin.parameters()),
    )
    assert_same(found, expected, model)


def test_several_functions_on_a_list_of_outputs() -> None:
    class Heads(nn.Module):
        """Classes, a value and bits of one body."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 5)
            self.heads = nn.ModuleList(nn.Linear(5, d) for d in (3, 1, 2))

        def forward(self, x: Tensor) -> list[Tensor]:
            """A list of outputs."""
            h = self.body(x).tanh()
            return [head(h) for head in self.heads]

    model, x, y = Heads().double(), double(SAMPLES, 4), classes(SAMPLES)
    t, bits = double(SAMPLES, 1, seed=3), (double(SAMPLES, 2, seed=4) > 0).double()
    twin = copy.deepcopy(model)
    capture = Capture(model, (F.cross_entropy, F.mse_loss, F.binary_cross_entropy_with_logits))  # type: ignore[arg-type]
    a, b, c = model(x)
    loss = F.cross_entropy(a, y) + 0.1 * F.mse_loss(b, t) + 2 * F.binary_cross_entropy_with_logits(c, bits)
    found = captured(capture, loss)
    a, b, c = twin(x)
    terms = [
        (a, lambda z: F.cross_entropy(z, y)),
        (b, lambda z: 0.1 * F.mse_loss(z, t)),
        (c, lambda z: 2 * F.binary_cross_entropy_with_logits(z, bits)),
    ]
    assert_same(found, gauss_newton(terms, list(twin.parameters())), model)


def test_a_module_and_the_function_that_it_calls_are_one_loss() -> None:
    model, x, y = _network(), double(SAMPLES, 4), classes(SAMPLES)
    twin, module = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, [module, F.cross_entropy])
    found = captured(capture, module(model(x), y))
    assert_same(found, gauss_newton([(twin(x), lambda z: F.cross_entropy(z, y))], list(twin.parameters())), model)


def test_gradients_may_be_zeroed_between_the_forward_pass_and_a_function() -> None:
    model, x, y = _network(), double(SAMPLES, 4), classes(SAMPLES)
    optimizer = NGD(model, F.cross_entropy, lr=0.5, damping=0.1)
    z = model(x)
    optimizer.zero_grad()
    first = F.cross_entropy(z, y)
    first.backward()
    optimizer.step()
    assert F.cross_entropy(model(x), y) < first
