"""Kind I: losses that the user writes as a `PerSampleLoss`."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import NGD
from host_client import curvature as package
from host_client.curvature import Capture
from tests.host_client.kinds.reference import assert_same, captured, classes, double, gauss_newton, network


def _focal(z: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(z, y, reduction="none")
    return (1 - (-losses).exp()).square() * losses


def _log_cosh(z: Tensor, t: Tensor) -> Tensor:
    """Convex, and outputs of a sample go in together."""
    return (z - t).cosh().log().sum(1)


def _coupled(z: Tensor, t: Tensor) -> Tensor:
    """Convex, with a Hessian that is not diagonal."""
    return (1 + (z - t).square().sum(1)).sqrt()


def _loss(function: object) -> nn.Module:
    class Own(package.PerSampleLoss):  # type: ignore[name-defined, misc]
        """The mean of a function's values."""

        def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
            """The function."""
            losses: Tensor = function(output, target)  # type: ignore[operator]
            return losses

    return Own()  # type: ignore[no-any-return]


TARGETS = {"focal": classes(6), "log cosh": double(6, 3, seed=3), "coupled": double(6, 3, seed=3)}
FUNCTIONS = {"focal": _focal, "log cosh": _log_cosh, "coupled": _coupled}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_value_and_gradients_are_those_of_the_mean(name: str) -> None:
    model, x, t = network(), double(6, 4), TARGETS[name]
    twin, criterion = copy.deepcopy(model), _loss(FUNCTIONS[name])
    Capture(model, criterion, curvature="empirical")
    loss, plain = criterion(model(x), t), FUNCTIONS[name](twin(x), t).mean()
    loss.backward()
    plain.backward()
    torch.testing.assert_close(loss, plain)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("name", ["log cosh", "coupled"])
def test_a_convex_one_has_its_exact_curvature(name: str) -> None:
    model, x, t = network(), double(6, 4), TARGETS[name]
    twin, criterion = copy.deepcopy(model), _loss(FUNCTIONS[name])
    capture = Capture(model, criterion)
    found = captured(capture, criterion(model(x), t))
    expected = gauss_newton([(twin(x), lambda z: FUNCTIONS[name](z, t).mean())], list(twin.parameters()))
    assert_same(found, expected, model)


def test_focal_loss_trains() -> None:
    model, x = network(), double(24, 4)
    y, criterion = x[:, :3].argmax(1), _loss(_focal)
    optimizer = NGD(model, criterion, lr=0.5, damping=0.05, curvature="empirical")
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
