"""Parameters that a batch does not use, and gradients that are sparse."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import KFAC, NGD, TNGD, LevenbergMarquardt, Session
from spu_link.operators import Rows
from tests.cases import Problem
from tests.host_client.optimizers.training import SOLVED, flat, train


@pytest.fixture
def small() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(6, 5), torch.randint(3, (6,)))


def identity(model: nn.Module) -> Any:
    """F = 0, so that with λ = 1 the direction is the gradient."""
    n = sum(p.numel() for p in model.parameters())
    return lambda: Rows(torch.zeros(1, n))


def skip(problem: Problem, optimizer: torch.optim.Optimizer) -> Tensor:
    """A step without a gradient of the last weight; that weight before."""
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    problem.model[2].weight.grad = None
    before: Tensor = problem.model[2].weight.detach().clone()
    optimizer.step()
    optimizer.zero_grad()
    return before


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"betas": (0.9, 0.99)}, {"momentum": 0.9, "trust_region": 1.0}])
def test_parameters_without_a_gradient_stay_where_they_are_as_with_torch(small: Problem, options: Any) -> None:
    other = copy.deepcopy(small)
    rule = {**options, "weight_decay": 0.1}
    optimizer = NGD(small.model, small.criterion, lr=0.01, damping=1.0, curvature=identity(small.model), **rule)
    kept = None
    for _ in range(3):
        train(small, optimizer, 1)
        kept = copy.deepcopy(optimizer.state[small.model[2].weight])
        assert torch.equal(skip(small, optimizer), small.model[2].weight)
        torch.testing.assert_close(optimizer.state[small.model[2].weight], kept, rtol=0, atol=0)
    if "betas" in options:
        adam = torch.optim.AdamW(other.model.parameters(), lr=0.01, **rule)
        for _ in range(3):
            train(other, adam, 1)
            skip(other, adam)
        torch.testing.assert_close(flat(small.model), flat(other.model))


@pytest.mark.parametrize("kind", [*SOLVED, TNGD])
def test_the_others_step_as_if_it_were_not_there(small: Problem, kind: Any, session: Session) -> None:
    other = copy.deepcopy(small)
    small.model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    captured = NGD(other.model, other.criterion, lr=0.1, damping=0.1)
    n = flat(other.model).numel()

    def given() -> Rows:
        assert captured.capture is not None
        rows = captured.capture.operator.dense().float()
        return Rows(torch.cat([torch.zeros(len(rows), 2), rows], 1))

    device: Any = {"session": session, "analog_time": 500.0} if kind is TNGD else {}
    optimizer = kind(small.model, small.criterion, lr=0.1, damping=0.1, curvature=given, weight_decay=0.1, **device)
    assert next(iter(small.model.parameters())).shape == (2,)
    captured.hyperparameters["weight_decay"] = 0.1
    for _ in range(3):
        other.criterion(other.model(other.inputs), other.targets).backward()
        train(small, optimizer, 1)
        captured.step()
        captured.zero_grad()
    assert small.model.get_parameter("unused").tolist() == [1.0, 1.0]
    torch.testing.assert_close(flat(small.model)[-n:], flat(other.model), rtol=1e-4, atol=1e-5)


def test_a_preconditioner_leaves_them_without_a_gradient(small: Problem) -> None:
    optimizer = NGD(small.model, small.criterion, lr=0.1, damping=0.1)
    small.criterion(small.model(small.inputs), small.targets).backward()
    small.model[2].weight.grad = None
    before = small.model[0].weight.grad.clone()  # type: ignore[operator,union-attr]
    optimizer.precondition()
    assert small.model[2].weight.grad is None
    assert not torch.equal(small.model[0].weight.grad, before)  # type: ignore[arg-type]


def test_damping_is_adapted_without_them(small: Problem) -> None:
    small.model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    rule = LevenbergMarquardt(every=1, grow=2.0, shrink=0.5)
    optimizer = NGD(
        small.model, small.criterion, lr=0.01, damping=1.0, curvature=identity(small.model), adapt_damping=rule
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = small.criterion(small.model(small.inputs), small.targets)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    assert optimizer.hyperparameters["damping"] == 0.5


class Skipping(nn.Module):
    """A model that leaves out its middle layer on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.skips = False

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.first(x).tanh()
        logits: Tensor = self.last(x if self.skips else self.middle(x))
        return logits


def test_kfac_makes_factors_of_the_layers_that_were_used(small: Problem) -> None:
    whole, without = (replace(small, model=Skipping(), criterion=nn.CrossEntropyLoss()) for _ in range(2))
    without.model.load_state_dict(whole.model.state_dict())
    optimizer = KFAC(whole.model, whole.criterion, lr=0.1, damping=0.1, momentum=0.9, trust_region=1.0)
    groups = [{"params": without.model.middle.parameters(), "adam": True}]
    other = KFAC(without.model, without.criterion, lr=0.1, damping=0.1, momentum=0.9, trust_region=1.0, groups=groups)
    whole.model.skips = without.model.skips = True
    train(whole, optimizer, 2)
    train(without, other, 2)
    torch.testing.assert_close(flat(whole.model), flat(without.model), rtol=0, atol=0)
    whole.model.skips = False
    train(whole, optimizer, 1)
    assert not torch.equal(whole.model.middle.weight, without.model.middle.weight)


def embedded(*, sparse: bool) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Linear(4, 3))
    return Problem(model, nn.CrossEntropyLoss(), torch.randint(5, (6,)), torch.randint(3, (6,)))


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_sparse_gradients_do_what_dense_ones_do(adam: bool, captured: bool) -> None:
    models = []
    for sparse in (True, False):
        problem = embedded(sparse=sparse)
        options: Any = {"groups": [{"params": problem.model[0].parameters(), "adam": True}] if adam else None}
        if not captured:
            options["curvature"] = lambda: Rows(torch.ones(1, 15 if adam else 43))
        train(problem, NGD(problem.model, problem.criterion, lr=0.1, damping=0.1, **options), 3)
        models.append(flat(problem.model))
    torch.testing.assert_close(models[0], models[1])


def test_preconditioned_gradients_are_dense() -> None:
    problem = embedded(sparse=True)
    optimizer = NGD(problem.model, problem.criterion, lr=0.1, damping=0.1)
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    optimizer.precondition()
    gradient = problem.model[0].weight.grad
    assert gradient is not None
    assert not gradient.is_sparse
    torch.optim.Adam(problem.model.parameters()).step()
