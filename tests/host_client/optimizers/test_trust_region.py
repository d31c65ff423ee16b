import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.optim.optimizer import register_optimizer_step_pre_hook

from host_client import NGD, ConjugateGradients, Diverged
from host_client.optimizers.base import NaturalGradient
from spu_link.operators import Rows
from tests.cases import Problem
from tests.host_client.optimizers.training import flat, train

FACTORS: dict[int, Tensor] = {}
"""The last dense factor of each optimizer, by its id."""


def keep_factor(optimizer: Any, *_: object) -> None:
    """A hook before its steps, which release what they use."""
    if isinstance(optimizer, NaturalGradient) and optimizer.capture is not None:
        FACTORS[id(optimizer)] = optimizer.capture.operator.dense()


@pytest.fixture
def softmax() -> Iterator[Problem]:
    """A smooth softmax model in float64, away from its optimum."""
    hook = register_optimizer_step_pre_hook(keep_factor)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    inputs = torch.randn(64, 6, dtype=torch.float64)
    yield Problem(model, nn.CrossEntropyLoss(), inputs, (inputs @ torch.randn(6, 4).double()).argmax(1))
    hook.remove()
    FACTORS.clear()


def divergence(problem: Problem, before: Tensor) -> float:
    """Mean KL divergence of the predictions from those of the log-probabilities given."""
    with torch.no_grad():
        after = log_softmax(problem.model(problem.inputs), 1)
    return float(kl_div(after, before, reduction="batchmean", log_target=True))


def length(optimizer: NaturalGradient, change: Tensor) -> float:
    """½ Δᵀ(F + λI)Δ with the curvature of the last loss."""
    image = FACTORS[id(optimizer)] @ change
    return 0.5 * float(image @ image + optimizer.hyperparameters["damping"] * change @ change)


@pytest.mark.parametrize("radius", [1e-6, 1e-4, 1e-2])
def test_however_large_the_learning_rate_predictions_move_by_the_radius(softmax: Problem, radius: float) -> None:
    optimizer = NGD(softmax.model, softmax.criterion, lr=1e4, damping=1e-3, trust_region=radius)
    with torch.no_grad():
        before = log_softmax(softmax.model(softmax.inputs), 1)
    start = flat(softmax.model)
    train(softmax, optimizer, 1)
    assert length(optimizer, flat(softmax.model) - start) == pytest.approx(radius)
    # The quadratic form without damping is the divergence to leading order: the next one is of the order of √δ.
    optimizer.hyperparameters["damping"] = 0.0
    moved = length(optimizer, flat(softmax.model) - start)
    assert 0.5 * radius < moved < radius
    assert divergence(softmax, before) == pytest.approx(moved, rel=10 * math.sqrt(radius))
    assert optimizer.counts["trust region"] == 1


@pytest.mark.parametrize("lr", [0.03, 0.3, 3.0, 1e4, lambda step: 0.2 * (1 + step)])
def test_the_whole_update_is_bounded_with_momentum_and_decay(softmax: Problem, lr: Any) -> None:
    optimizer = NGD(
        softmax.model, softmax.criterion, lr=lr, damping=1e-2, momentum=0.9, weight_decay=0.1, trust_region=1e-3
    )
    lengths = []
    for number in range(12):
        start = flat(softmax.model)
        generator = torch.Generator().manual_seed(number)
        some = torch.randperm(64, generator=generator)[:4]
        train(Problem(softmax.model, softmax.criterion, softmax.inputs[some], softmax.targets[some]), optimizer, 1)
        lengths.append(length(optimizer, flat(softmax.model) - start))
    assert max(lengths) <= 1e-3 * (1 + 1e-6)
    assert optimizer.counts["trust region"] == sum(one > 0.999e-3 for one in lengths) > 0


def test_momentum_is_shortened_with_the_update(softmax: Problem) -> None:
    optimizer = NGD(softmax.model, softmax.criterion, lr=100.0, damping=1e-2, momentum=0.9, trust_region=1e-4)
    for _ in range(3):
        start = flat(softmax.model)
        train(softmax, optimizer, 1)
        momentum = torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in softmax.model.parameters()])
        torch.testing.assert_close(-100.0 * momentum, flat(softmax.model) - start, rtol=1e-6, atol=1e-9)


def test_momentum_that_the_batch_has_no_curvature_for_is_bounded() -> None:
    """F of rank 1, of the first parameter and then of the second: F alone would let the momentum of the other run."""
    model = nn.Linear(2, 1, bias=False).double()
    directions = iter(torch.eye(2, dtype=torch.float64).repeat(20, 1))
    optimizer = NGD(
        model,
        nn.MSELoss(),
        lr=1.0,
        damping=0.1,
        momentum=0.99,
        trust_region=1e-2,
        curvature=lambda: Rows(next(directions)[None]),
    )
    for _ in range(20):
        before = flat(model)
        model.weight.grad = torch.ones(1, 2, dtype=torch.float64)
        optimizer.step()
        change = flat(model) - before
        assert 0.5 * 0.1 * float(change @ change) <= 1e-2 * (1 + 1e-9)


def test_several_directions_are_bounded_together(softmax: Problem) -> None:
    class Twice(NGD):
        def _directions(self, operator, drive):
            return [*super()._directions(operator, drive)] * 2

    optimizer = Twice(softmax.model, softmax.criterion, lr=100.0, damping=1e-2, trust_region=1e-4)
    start = flat(softmax.model)
    train(softmax, optimizer, 1)
    assert length(optimizer, flat(softmax.model) - start) == pytest.approx(1e-4)
    assert optimizer.counts["trust region"] == 1


def test_a_step_within_the_radius_is_as_without_one(softmax: Problem) -> None:
    other = copy.deepcopy(softmax)
    optimizer = NGD(softmax.model, softmax.criterion, lr=0.01, damping=0.1, trust_region=1e3)
    train(softmax, optimizer, 3)
    train(other, NGD(other.model, other.criterion, lr=0.01, damping=0.1), 3)
    assert torch.equal(flat(softmax.model), flat(other.model))
    assert optimizer.counts["trust region"] == 0


def test_training_that_diverges_without_it_converges_with_it(softmax: Problem) -> None:
    other = copy.deepcopy(softmax)
    without = train(other, NGD(other.model, other.criterion, lr=30.0, damping=1e-3, solver=ConjugateGradients()), 30)
    bounded = NGD(
        softmax.model, softmax.criterion, lr=30.0, damping=1e-3, trust_region=0.03, solver=ConjugateGradients()
    )
    losses = train(softmax, bounded, 30)
    assert not math.isfinite(without[-1]) or without[-1] > 2 * without[0]
    assert losses[-1] < 0.3 * losses[0]
    assert max(losses) <= losses[0]
    assert bounded.counts["trust region"] > 20


def test_learning_rates_of_groups_count(softmax: Problem) -> None:
    last = softmax.model[2]
    optimizer = NGD(
        softmax.model,
        softmax.criterion,
        lr=100.0,
        damping=1e-3,
        trust_region=1e-4,
        groups=[{"params": last.parameters(), "lr": 7.0}],
    )
    start = flat(softmax.model)
    train(softmax, optimizer, 1)
    assert length(optimizer, flat(softmax.model) - start) == pytest.approx(1e-4)


def test_what_another_optimizer_gets_is_bounded_too(softmax: Problem) -> None:
    optimizer = NGD(softmax.model, softmax.criterion, lr=50.0, damping=1e-3, trust_region=1e-4)
    start = flat(softmax.model)
    softmax.criterion(softmax.model(softmax.inputs), softmax.targets).backward()
    keep_factor(optimizer)
    optimizer.precondition()
    torch.optim.SGD(softmax.model.parameters(), lr=50.0).step()
    assert length(optimizer, flat(softmax.model) - start) == pytest.approx(1e-4)


def test_it_may_follow_a_schedule(softmax: Problem) -> None:
    optimizer = NGD(
        softmax.model, softmax.criterion, lr=1e4, damping=1e-3, trust_region=lambda step: 1e-4 / (1 + step) ** 2
    )
    for radius in (1e-4, 0.25e-4):
        start = flat(softmax.model)
        train(softmax, optimizer, 1)
        assert length(optimizer, flat(softmax.model) - start) == pytest.approx(radius)


def test_what_makes_no_sense_is_refused(softmax: Problem) -> None:
    with pytest.raises(ValueError, match=r"Invalid trust_region: -1\.0; it must be more than 0, or None"):
        NGD(softmax.model, softmax.criterion, lr=1.0, damping=0.1, trust_region=-1.0)
    with pytest.raises(ValueError, match="with betas it must be None"):
        NGD(softmax.model, softmax.criterion, lr=1.0, damping=0.1, trust_region=0.1, betas=(0.0, 0.0))


def test_a_step_that_it_cannot_bound_leaves_parameters_and_momentum_alone(softmax: Problem) -> None:
    optimizer = NGD(softmax.model, softmax.criterion, lr=1.0, damping=1e-3, trust_region=0.1, momentum=0.9)
    train(softmax, optimizer, 2)
    before, kept = flat(softmax.model), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.hyperparameters["lr"] = 1e300
    softmax.criterion(softmax.model(softmax.inputs), softmax.targets).backward()
    with pytest.raises(Diverged, match="step 3: the length of the update is not finite"):
        optimizer.step()
    assert torch.equal(flat(softmax.model), before)
    torch.testing.assert_close(optimizer.state_dict()["state"], kept, rtol=0, atol=0)
    optimizer.hyperparameters["lr"] = 1.0
    optimizer.step()
    assert not torch.equal(flat(softmax.model), before)


def test_momentum_that_points_uphill_is_dropped(softmax: Problem) -> None:
    optimizer = NGD(softmax.model, softmax.criterion, lr=0.1, damping=1e-2, momentum=0.9, trust_region=1e3)
    train(softmax, optimizer, 1)
    for parameter in softmax.model.parameters():
        optimizer.state[parameter]["momentum_buffer"].mul_(-50.0)
    before = flat(softmax.model)
    train(softmax, optimizer, 1)
    assert torch.equal(flat(softmax.model), before)
    assert all(not optimizer.state[p]["momentum_buffer"].any() for p in softmax.model.parameters())
    other = copy.deepcopy(softmax)
    train(softmax, optimizer, 1)
    train(other, NGD(other.model, other.criterion, lr=0.1, damping=1e-2), 1)
    torch.testing.assert_close(flat(softmax.model), flat(other.model))


def test_weight_decay_goes_on_where_the_gradient_is_zero() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    options: Any = {"damping": 0.1, "weight_decay": 0.5, "trust_region": 1e3, "momentum": 0.9}
    rows = Rows(torch.eye(2, dtype=torch.float64))
    optimizer = NGD(model, nn.MSELoss(), lr=0.1, curvature=lambda: rows, **options)
    before = flat(model)
    model.weight.grad = torch.zeros(1, 2, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(flat(model), 0.95 * before)
