"""Dense references by plain autograd, one row at a time in float64, and the curvature that a capture gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.host_client.curvature.oracle import assert_same_curvature, jacobian

TOLERANCE = 1e-9
Term: TypeAlias = tuple[Tensor, Callable[[Tensor], Tensor]]
"""The input z of a criterion, with its graph, and the loss as a function of z, with its factor."""


def double(*shape: int, seed: int = 1) -> Tensor:
    """Return standard normal numbers in float64, the same for each seed."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(samples: int, count: int = 3) -> Tensor:
    """Return labels 0, 1, 2, 0, … of shape (samples,)."""
    return torch.arange(samples) % count


def gauss_newton(terms: Sequence[Term], parameters: Sequence[Tensor]) -> Tensor:
    """Return F = Σ JᵀHJ over the terms, shape (N, N); a parameter that no term uses has zero columns."""
    total = torch.zeros(())
    for z, loss in terms:
        j = jacobian(z, parameters)
        h = torch.autograd.functional.hessian(loss, z.detach()).reshape(z.numel(), z.numel())
        total = total + j.T @ h @ j
    return total


def fisher(z: Tensor, hessian: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return F = JᵀHJ for a given H of shape (z.numel(),) * 2."""
    j = jacobian(z, parameters)
    return j.T @ hessian @ j


def empirical(losses: Tensor, parameters: Sequence[Tensor], divisor: float) -> Tensor:
    """Return F = Σ gᵢgᵢᵀ / divisor, gᵢ the gradient of entry i of `losses`, shape (N, N)."""
    rows = jacobian(losses, parameters)
    return rows.T @ rows / divisor


def curvature_of_gradients(capture: Capture) -> Tensor:
    """Return F of the gradients that the model holds, shape (N, N), and drop them."""
    a = capture.operator_of_gradients().dense()
    capture.model.zero_grad()
    capture.forget_gradients()
    return a.T @ a


def captured(capture: Capture, loss: Tensor) -> Tensor:
    """Differentiate a loss and return its F, shape (N, N)."""
    loss.backward()
    return curvature_of_gradients(capture)


def assert_same(found: Tensor, expected: Tensor, model: nn.Module) -> None:
    """Assert that F is equal to 1e-9, relative to the scale of each block of two parameters."""
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    assert_same_curvature(found, expected, sizes, TOLERANCE)


def network() -> nn.Sequential:
    """Return a classifier of three classes from four numbers, in float64."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def of_cross_entropy(z: Tensor, y: Tensor, model: nn.Module, kind: str = "exact") -> Tensor:
    """Return F of the mean cross-entropy of logits of a model, shape (N, N), exact or empirical."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if kind == "exact":
        return gauss_newton([(z, lambda z: F.cross_entropy(z, y))], parameters)
    return empirical(F.cross_entropy(z, y, reduction="none"), parameters, len(y))


def assert_curvature(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    call: Callable[[Any, Any], Tensor] = lambda m, x: m(x),
    kind: str = "exact",
    **options: Any,
) -> None:
    """Assert that F of the mean cross-entropy of a network's logits is right in each of several passes.

    Args:
        model: the network, in float64.
        batches: inputs and labels of each pass.
        call: the logits, from the network and its inputs.
        kind: of curvature, "exact" or "empirical".
        options: further ones of the capture.
    """
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind, **options)  # type: ignore[arg-type]
    for inputs, y in batches:
        found = captured(capture, criterion(call(model, inputs), y))
        assert_same(found, of_cross_entropy(call(twin, inputs), y, twin, kind), model)
