"""Compiled modules, torch.func, subclasses of tensors, two optimizers on one criterion, and a group of one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import NGD
from host_client.curvature import Capture
from tests.host_client.kinds.reference import (
    Term,
    assert_curvature,
    assert_same,
    captured,
    classes,
    curvature_of_gradients,
    double,
    gauss_newton,
    network,
    of_cross_entropy,
)
from tests.networks import Function, parameter

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


@pytest.mark.parametrize("whole", [True, False], ids=["model.compile()", "a compiled part"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_modules(whole: bool) -> None:
    torch.compiler.reset()
    model, criterion = network(), nn.CrossEntropyLoss()
    twin = copy.deepcopy(model)
    (model if whole else model[0]).compile(backend="eager")
    capture = Capture(model, criterion)
    for seed in range(2):
        x, y = double(6, 4, seed=seed), classes(6)
        assert_same(captured(capture, criterion(model(x), y)), of_cross_entropy(twin(x), y, twin), model)


def test_two_optimizers_on_one_criterion() -> None:
    """A generator and a discriminator, trained by turns."""
    generator = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    discriminator = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    criterion = nn.BCEWithLogitsLoss()
    captures = [Capture(generator, criterion), Capture(discriminator, criterion)]
    noise, real, ones, zeros = double(6, 4), double(6, 3, seed=3), torch.ones(6, 1).double(), torch.zeros(6, 1).double()
    for _ in range(2):
        twins = copy.deepcopy([generator, discriminator])
        fake = generator(noise)
        (criterion(discriminator(real), ones) + criterion(discriminator(fake.detach()), zeros)).backward()
        found = curvature_of_gradients(captures[1])
        fakes = twins[0](noise).detach()
        terms: list[Term] = [
            (twins[1](x), lambda z, t=t: F.binary_cross_entropy_with_logits(z, t))  # type: ignore[misc]
            for x, t in ((real, ones), (fakes, zeros))
        ]
        assert_same(found, gauss_newton(terms, list(twins[1].parameters())), discriminator)
        criterion(discriminator(fake), ones).backward()
        found = curvature_of_gradients(captures[0])
        z = twins[1](twins[0](noise))
        term = (z, lambda z: F.binary_cross_entropy_with_logits(z, ones))
        assert_same(found, gauss_newton([term], list(twins[0].parameters())), generator)
        discriminator.zero_grad()
        captures[1].forget_gradients()


def _gradient(m: Function, x: Tensor) -> Tensor:
    """The gradient of a function of the input alone, by torch.func, before the layers."""
    return m.head(m.body(torch.func.grad(lambda t: t.sin().sum())(x)).tanh() * m.out)  # type: ignore[operator, no-any-return]


def _jacobian(m: Function, x: Tensor) -> Tensor:
    """The Jacobian of hidden activations in the input of each sample."""
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: m.body(row).tanh()))(x)  # type: ignore[operator]
    return m.head(jacobians.sum(2) * m.out)  # type: ignore[operator, no-any-return]


def _directional(m: Function, x: Tensor) -> Tensor:
    """The derivative along ones, by torch.func.jvp."""
    _, derivative = torch.func.jvp(lambda t: m.body(t).tanh(), (x,), (torch.ones_like(x),))  # type: ignore[operator]
    return m.head(derivative * m.out)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("forward", [_gradient, _jacobian, _directional], ids=["grad", "jacrev", "jvp"])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_torch_func_inside_the_model(forward: Callable[[Function, Tensor], Tensor]) -> None:
    model = Function(forward, body=nn.Linear(4, 5), out=parameter(5), head=nn.Linear(5, 3)).double()
    assert_curvature(model, [(double(6, 4), classes(6))])


class Named(Tensor):
    """A subclass of tensors that does nothing."""


def test_tensor_subclasses_as_inputs() -> None:
    model, criterion, x, y = network(), nn.CrossEntropyLoss(), double(6, 4), classes(6)
    expected, capture = of_cross_entropy(model(x), y, model), Capture(model, criterion)
    loss = criterion(model(x.as_subclass(Named)), y)
    assert_same(captured(capture, loss).as_subclass(Tensor), expected, model)


def test_a_group_of_one_process(tmp_path: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, criterion = network(), nn.CrossEntropyLoss()
        before, optimizer = copy.deepcopy(model), NGD(model, criterion, lr=0.5, damping=0.1)
        criterion(model(double(6, 4)), classes(6)).backward()
        optimizer.step()
        assert not torch.equal(before[0].weight, model[0].weight)
    finally:
        dist.destroy_process_group()
