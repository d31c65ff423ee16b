"""Known right at a6845ae, and to stay so: members of the kinds of fault beside it that were never wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from host_client import NGDWoodbury
from host_client.curvature import Capture, UnsupportedLayer
from tests.host_client.kinds.experts import Experts
from tests.host_client.kinds.pooling import KNOWN_RIGHT as POOLS
from tests.host_client.kinds.pooling import ROUNDS, Sizes, assert_pooled
from tests.host_client.kinds.reference import (
    Term,
    assert_same,
    captured,
    classes,
    curvature_of_gradients,
    double,
    gauss_newton,
)
from tests.host_client.kinds.sequences import RIGHT, assert_tokens_before_samples
from tests.host_client.kinds.spectra import KNOWN_RIGHT as SPECTRA
from tests.host_client.kinds.spectra import spectral
from tests.networks import Function, TiedAutoencoder, parameter

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _expected(twin: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return gauss_newton([(twin(x), lambda z: F.cross_entropy(z, y))], list(twin.parameters()))


@pytest.mark.parametrize("whole", [True, False], ids=["model.compile()", "a compiled part"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_modules(whole: bool) -> None:
    torch.compiler.reset()
    model, criterion = _network(), nn.CrossEntropyLoss()
    twin = copy.deepcopy(model)
    (model if whole else model[0]).compile(backend="eager")
    capture = Capture(model, criterion)
    for seed in range(2):
        x, y = double(6, 4, seed=seed), classes(6)
        assert_same(captured(capture, criterion(model(x), y)), _expected(twin, x, y), model)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_between_forward_and_backward(set_to_none: bool) -> None:
    model, criterion = _network(), nn.CrossEntropyLoss()
    twin, optimizer = copy.deepcopy(model), NGDWoodbury(model, criterion, lr=0.5, damping=0.1)
    x, y = double(6, 4), classes(6)
    loss = criterion(model(x), y)
    optimizer.zero_grad(set_to_none=set_to_none)
    loss.backward()
    assert optimizer.capture is not None
    assert_same(curvature_of_gradients(optimizer.capture), _expected(twin, x, y), model)


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


def test_tied_embeddings() -> None:
    model, criterion = TiedAutoencoder(5, 3).double(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    x = torch.arange(8).view(2, 4) * 3 % 5
    assert_same(captured(capture, criterion(model(x), x)), _expected(twin, x, x), model)


def test_uneven_micro_batches() -> None:
    model, criterion = _network(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    x, y = double(8, 4), classes(8)
    for part, labels in zip(x.split([5, 2, 1]), y.split([5, 2, 1]), strict=True):
        (criterion(model(part), labels) * len(part) / 8).backward()
    assert_same(curvature_of_gradients(capture), _expected(twin, x, y), model)


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
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    x, y = double(6, 4), classes(6)
    assert_same(captured(Capture(model, criterion), criterion(model(x), y)), _expected(twin, x, y), model)


class Named(Tensor):
    """A subclass of tensors that does nothing."""


def test_tensor_subclasses_as_inputs() -> None:
    model, criterion = _network(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    x, y = double(6, 4), classes(6)
    loss = criterion(model(x.as_subclass(Named)), y)
    assert_same(captured(capture, loss).as_subclass(Tensor), _expected(twin, x, y), model)


def test_stochastic_weight_averaging() -> None:
    model, criterion = _network(), nn.CrossEntropyLoss()
    optimizer = NGDWoodbury(model, criterion, lr=0.5, damping=0.1)
    averaged: Any = AveragedModel(model)
    for seed in range(3):
        twin, x, y = copy.deepcopy(model), double(6, 4, seed=seed), classes(6)
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        assert optimizer.capture is not None
        a = optimizer.capture.operator_of_gradients().dense()
        assert_same(a.T @ a, _expected(twin, x, y), model)
        optimizer.step()
        averaged.update_parameters(model)
        averaged(x)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_a_reentrant_checkpoint_of_the_first_layers_is_refused_by_name(kind: str) -> None:
    """Nothing trained stands before it, so no gradient has to go through it; its own parameters seem to be unused."""
    body, head = nn.Sequential(nn.Linear(4, 5)), nn.Linear(5, 3)
    model = Function(
        lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=True).tanh()),  # type: ignore[operator]
        body=body,
        head=head,
    ).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedLayer, match=r"(?s)body.*use_reentrant=False"):
        captured(capture, criterion(model(double(6, 4).requires_grad_()), classes(6)))


@pytest.mark.parametrize("name", POOLS)
def test_graphs_of_other_sizes_pooled(name: str) -> None:
    assert_pooled(name)


class Spread(nn.Module):
    """A vector for each graph added to the hidden state of each of its nodes: the route from few rows to many."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.node, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, graphs: Tensor, sizes: Sizes) -> Tensor:
        """Logits of shape (graphs, 3)."""
        h = self.node(x) + self.graph(graphs).repeat_interleave(torch.tensor(sizes), 0)
        logits: Tensor = self.head(torch.stack([part.mean(0) for part in h.tanh().split(list(sizes))]))
        return logits


def test_vectors_of_graphs_spread_over_their_nodes() -> None:
    model = Spread().double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    for seed, sizes in enumerate(ROUNDS):
        x, graphs, y = double(12, 3, seed=seed), double(3, 3, seed=seed + 9), classes(3)
        z = twin(x, graphs, sizes)
        expected = gauss_newton([(z, lambda z, y=y: F.cross_entropy(z, y))], list(twin.parameters()))
        assert_same(captured(capture, criterion(model(x, graphs, sizes), y)), expected, model)


@pytest.mark.parametrize("of", ["a weight", "all parameters", "the input"])
def test_gradients_looked_at_before_the_only_backward_pass(of: str) -> None:
    model, criterion = _network(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    x, y = double(6, 4).requires_grad_(), classes(6)
    loss = criterion(model(x), y)
    of_what = {"a weight": [model[2].weight], "all parameters": list(model.parameters()), "the input": [x]}[of]
    torch.autograd.grad(loss, of_what, retain_graph=True)
    loss.backward()
    assert_same(curvature_of_gradients(capture), _expected(twin, x, y), model)


def test_clipped_gradients_keep_their_curvature() -> None:
    model, criterion = _network(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    x, y = double(6, 4), classes(6)
    criterion(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert_same(curvature_of_gradients(capture), _expected(twin, x, y), model)


def test_a_group_of_one_process(tmp_path: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, criterion = _network(), nn.CrossEntropyLoss()
        before, optimizer = copy.deepcopy(model), NGDWoodbury(model, criterion, lr=0.5, damping=0.1)
        criterion(model(double(6, 4)), classes(6)).backward()
        optimizer.step()
        assert not torch.equal(before[0].weight, model[0].weight)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", SPECTRA)
def test_real_parameters_of_complex_arithmetic(name: str) -> None:
    model = spectral(name)
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    x, y = double(4, 4), classes(4)
    assert_same(captured(Capture(model, criterion), criterion(model(x), y)), _expected(twin, x, y), model)


def test_a_frozen_complex_parameter_is_no_hindrance() -> None:
    scale = nn.Parameter(torch.randn(4, dtype=torch.complex128), requires_grad=False)
    head = nn.Linear(6, 3, dtype=torch.float64)
    forward = lambda m, x: m.head(torch.fft.irfft(torch.fft.rfft(x) * m.scale, n=6))  # noqa: E731
    model = Function(forward, scale=scale, head=head)
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    x, y = double(4, 6), classes(4)
    trained = [p for p in twin.parameters() if p.requires_grad]
    expected = gauss_newton([(twin(x), lambda z: F.cross_entropy(z, y))], trained)
    assert_same(captured(Capture(model, criterion), criterion(model(x), y)), expected, model)


def test_an_expert_that_is_called_without_tokens() -> None:
    model, criterion = Experts(call_empty=True).double(), nn.CrossEntropyLoss()
    twin, capture = copy.deepcopy(model), Capture(model, criterion)
    for turn in range(3):
        x, y = double(6, 4, seed=turn), classes(6)
        ((z, _),) = twin(x, turn)
        expected = gauss_newton([(z, lambda z, y=y: F.cross_entropy(z, y))], list(twin.parameters()))
        assert_same(captured(capture, criterion(model(x, turn)[0][0], y)), expected, model)


@pytest.mark.parametrize(("name", "flattened"), RIGHT)
def test_tokens_before_samples(name: str, flattened: str) -> None:
    assert_tokens_before_samples(name, flattened)
