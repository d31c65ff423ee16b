import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from host_client import NGDWoodbury
from host_client.optimizers import NGDCG
from tests.cases import Problem
from tests.host_client.optimizers.training import flat, train


@pytest.fixture
def softmax() -> Problem:
    """A smooth softmax model in float64, away from its optimum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    inputs = torch.randn(64, 6, dtype=torch.float64)
    return Problem(model, nn.CrossEntropyLoss(), inputs, (inputs @ torch.randn(6, 4).double()).argmax(1))


def divergence(problem: Problem, before: Tensor) -> float:
    """Mean KL divergence of the predictions from those of the log-probabilities given."""
    with torch.no_grad():
        after = log_softmax(problem.model(problem.inputs), 1)
    return float(kl_div(after, before, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("radius", [1e-6, 1e-4, 1e-2])
def test_however_large_the_learning_rate_predictions_move_by_the_radius(softmax: Problem, radius: float) -> None:
    optimizer = NGDWoodbury(softmax.model, softmax.criterion, lr=1e4, damping=1e-3, trust_region=radius)
    with torch.no_grad():
        before = log_softmax(softmax.model(softmax.inputs), 1)
    train(softmax, optimizer, 1)
    # The quadratic form is the divergence to leading order: the next one is of the order of the step, √δ.
    assert divergence(softmax, before) == pytest.approx(radius, rel=10 * math.sqrt(radius))
    assert optimizer.counts["trust region"] == 1


def test_a_step_within_the_radius_is_as_without_one(softmax: Problem) -> None:
    other = copy.deepcopy(softmax)
    optimizer = NGDWoodbury(softmax.model, softmax.criterion, lr=0.01, damping=0.1, trust_region=1e3)
    train(softmax, optimizer, 3)
    train(other, NGDWoodbury(other.model, other.criterion, lr=0.01, damping=0.1), 3)
    assert torch.equal(flat(softmax.model), flat(other.model))
    assert optimizer.counts["trust region"] == 0


def test_training_that_diverges_without_it_converges_with_it(softmax: Problem) -> None:
    other = copy.deepcopy(softmax)
    without = train(other, NGDCG(other.model, other.criterion, lr=30.0, damping=1e-3), 30)
    bounded = NGDCG(softmax.model, softmax.criterion, lr=30.0, damping=1e-3, trust_region=0.03)
    losses = train(softmax, bounded, 30)
    assert not math.isfinite(without[-1]) or without[-1] > 2 * without[0]
    assert losses[-1] < 0.3 * losses[0]
    assert max(losses) <= losses[0]
    assert bounded.counts["trust region"] > 20


def test_learning_rates_of_groups_count(softmax: Problem) -> None:
    last = softmax.model[2]
    optimizer = NGDWoodbury(
        softmax.model,
        softmax.criterion,
        lr=100.0,
        damping=1e-3,
        trust_region=1e-4,
        groups=[{"params": last.parameters(), "lr": 7.0}],
    )
    with torch.no_grad():
        before = log_softmax(softmax.model(softmax.inputs), 1)
    train(softmax, optimizer, 1)
    assert divergence(softmax, before) == pytest.approx(1e-4, rel=0.1)


def test_what_another_optimizer_gets_is_bounded_too(softmax: Problem) -> None:
    optimizer = NGDWoodbury(softmax.model, softmax.criterion, lr=50.0, damping=1e-3, trust_region=1e-4)
    with torch.no_grad():
        before = log_softmax(softmax.model(softmax.inputs), 1)
    softmax.criterion(softmax.model(softmax.inputs), softmax.targets).backward()
    optimizer.precondition()
    torch.optim.SGD(softmax.model.parameters(), lr=50.0).step()
    assert divergence(softmax, before) == pytest.approx(1e-4, rel=0.1)


def test_it_may_follow_a_schedule(softmax: Problem) -> None:
    optimizer = NGDWoodbury(
        softmax.model, softmax.criterion, lr=1e4, damping=1e-3, trust_region=lambda step: 1e-4 / (1 + step) ** 2
    )
    for radius in (1e-4, 0.25e-4):
        with torch.no_grad():
            before = log_softmax(softmax.model(softmax.inputs), 1)
        train(softmax, optimizer, 1)
        assert divergence(softmax, before) == pytest.approx(radius, rel=0.1)


def test_what_makes_no_sense_is_refused(softmax: Problem) -> None:
    with pytest.raises(ValueError, match=r"Invalid trust_region: -1\.0; it must be more than 0, or None"):
        NGDWoodbury(softmax.model, softmax.criterion, damping=0.1, trust_region=-1.0)
    with pytest.raises(ValueError, match="with betas it must be None"):
        NGDWoodbury(softmax.model, softmax.criterion, damping=0.1, trust_region=0.1, betas=(0.0, 0.0))


def test_a_step_that_it_cannot_bound_leaves_the_parameters_alone(softmax: Problem) -> None:
    optimizer = NGDWoodbury(softmax.model, softmax.criterion, lr=1.0, damping=1e-3, trust_region=0.1)
    softmax.criterion(softmax.model(softmax.inputs), softmax.targets).backward()
    parameter = next(softmax.model.parameters())
    assert parameter.grad is not None
    parameter.grad.view(-1)[0] = math.nan
    before = flat(softmax.model)
    with pytest.raises(FloatingPointError, match="no trust region can bound it"):
        optimizer.step()
    assert torch.equal(flat(softmax.model), before)
