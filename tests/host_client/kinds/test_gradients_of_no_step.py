"""Kind B: a loss is differentiated, and what comes of it is not what the parameters' gradients hold."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.host_client.kinds.reference import (
    assert_same,
    classes,
    curvature_of_gradients,
    double,
    network,
    of_cross_entropy,
)

Differentiate = Callable[[nn.Sequential, Tensor, Tensor], None]
"""Uses of a model, its inputs and a loss of factor one, after which `.grad` holds the loss's gradient."""


def _weight_after(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    torch.autograd.grad(loss, model[2].weight)


def _weight_before(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    torch.autograd.grad(loss, model[2].weight, retain_graph=True)
    loss.backward()


def _all_before(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    loss.backward()


def _norm_of_gradient(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    assert sum(float(g.detach().square().sum()) for g in gradients) > 0
    loss.backward()


def _input_before(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward()


def _input_after(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    torch.autograd.grad(loss, x)


def _backward_into_inputs(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(inputs=[x], retain_graph=True)
    loss.backward(inputs=list(model.parameters()))


def _backward_by_halves(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(inputs=list(model[2].parameters()), retain_graph=True)
    loss.backward(inputs=list(model[0].parameters()))


def _zeroed_in_place(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    for p in model.parameters():
        assert p.grad is not None
        p.grad.zero_()
    loss.backward()


def _zeroed_by_old_loops(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    for p in model.parameters():
        assert p.grad is not None
        p.grad.detach_()
        p.grad.zero_()
    loss.backward()


def _zeroed_together(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    torch._foreach_zero_([p.grad for p in model.parameters()])
    loss.backward()


def _zeroed_by_the_model(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    model.zero_grad(set_to_none=False)
    loss.backward()


def _zeroed_before_the_only_backward(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    torch.autograd.grad(loss, model[0].weight, retain_graph=True)
    model.zero_grad(set_to_none=False)
    loss.backward()


def _replaced_by_zeros(model: nn.Sequential, x: Tensor, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    loss.backward()


WAYS: dict[str, Differentiate] = {
    "a weight's gradient after the backward pass": _weight_after,
    "a weight's gradient before it": _weight_before,
    "all gradients before it": _all_before,
    "the norm of the gradient before it": _norm_of_gradient,
    "the input's gradient before it": _input_before,
    "the input's gradient after it": _input_after,
    "backward into the input": _backward_into_inputs,
    "backward by halves of the model": _backward_by_halves,
    "p.grad.zero_()": _zeroed_in_place,
    "p.grad.detach_() and zero_()": _zeroed_by_old_loops,
    "_foreach_zero_": _zeroed_together,
    "model.zero_grad(set_to_none=False)": _zeroed_by_the_model,
    "zero_grad(set_to_none=False) before the only backward pass": _zeroed_before_the_only_backward,
    "p.grad = zeros": _replaced_by_zeros,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_curvature_is_that_of_the_gradients_held(way: str) -> None:
    model, criterion = network(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    for seed in range(2):
        x, y = double(6, 4, seed=seed).requires_grad_(), classes(6)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # as zero_grad(set_to_none=False) leaves them
        WAYS[way](model, x, criterion(model(x), y))
        gradients = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-15)
        assert_same(curvature_of_gradients(capture), of_cross_entropy(twin(x), y, twin), model)


def test_gradients_dropped_between_two_losses() -> None:
    """A loss is looked at, its gradients are set to zero in place, and another one is trained on."""
    model, criterion = network(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    y = classes(6)
    criterion(model(double(6, 4, seed=5)), y).backward()
    for p in model.parameters():
        assert p.grad is not None
        p.grad.zero_()
    x = double(6, 4, seed=6)
    criterion(model(x), y).backward()
    assert_same(curvature_of_gradients(capture), of_cross_entropy(twin(x), y, twin), model)


def test_a_factor_of_the_loss_is_a_factor_of_its_curvature() -> None:
    """Once 0.1 times the loss, and twice 0.05 times the loss, are one and the same."""
    model, criterion = network(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    x, y = double(6, 4), classes(6)
    expected = 0.1 * of_cross_entropy(twin(x), y, twin)
    (0.1 * criterion(model(x), y)).backward()
    assert_same(curvature_of_gradients(capture), expected, model)
    for _ in range(2):
        (0.05 * criterion(model(x), y)).backward()
    assert_same(curvature_of_gradients(capture), expected, model)
