"""A run is saved and goes on from there, with the same numbers."""

import copy
import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from host_client import NGD, TNGD, NGDWoodbury
from host_client.optimizers.base import NaturalGradient
from spu_link.operators import Damped, Dense, Operator
from tests.cases import Problem, named
from tests.host_client.optimizers.fakes import Recorder
from tests.host_client.optimizers.training import flat, same, train


def _optimizer(problem: Problem, **options: Any) -> NGDWoodbury:
    return NGDWoodbury(problem.model, problem.criterion, **{"lr": 0.1, "damping": 0.1, **options})


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _momentum(problem: Problem) -> NaturalGradient:
    return _optimizer(problem, momentum=0.9, weight_decay=0.01)


def _moments(problem: Problem) -> NaturalGradient:
    return _optimizer(problem, betas=(0.9, 0.99))


def _scheduled(problem: Problem) -> NaturalGradient:
    return _optimizer(problem, lr=lambda step: 0.4 / (1 + step), damping=lambda step: 0.1 * 2**step)


def _groups(problem: Problem) -> NaturalGradient:
    adam = {"params": [problem.model.get_parameter("6.weight")], "adam": True, "lr": 0.05}
    rest = {"params": [problem.model.get_parameter("6.bias")], "lr": 0.3, "momentum": 0.5}
    return _optimizer(problem, groups=[adam, rest])


def _seldom(problem: Problem) -> NaturalGradient:
    return _optimizer(problem, curvature_every=4)


def _seldom_in_full(problem: Problem) -> NaturalGradient:
    def identity() -> Operator:
        given.append(len(given))
        return Dense(torch.eye(flat(problem.model).numel()) * len(given))

    given: list[int] = []
    return NGD(problem.model, problem.criterion, lr=0.1, damping=0.1, curvature=identity, curvature_every=4)


MAKERS = [_momentum, _moments, _scheduled, _groups, _seldom]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_run_saved_and_resumed_is_the_run_in_one_piece(
    problem: Problem, make: Callable[[Problem], NaturalGradient], steps: int
) -> None:
    batches = [(torch.randn_like(problem.inputs), problem.targets) for _ in range(2 * steps)]

    def run(one: Problem, optimizer: NaturalGradient, some: list[tuple[Tensor, Tensor]]) -> None:
        for inputs, targets in some:
            one.criterion(one.model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    start = copy.deepcopy(problem)
    optimizer = make(problem)
    run(problem, optimizer, batches[:steps])
    saved = _through_a_file({"model": problem.model.state_dict(), "optimizer": optimizer.state_dict()})
    run(problem, optimizer, batches[steps:])

    resumed = make(start)
    start.model.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    run(start, resumed, batches[steps:])
    torch.testing.assert_close(flat(start.model), flat(problem.model), rtol=0, atol=0)
    assert resumed.steps == 2 * steps


@pytest.mark.parametrize("case", ["embedding", "convolution", "linear on tokens"])
def test_a_curvature_in_a_checkpoint_is_that_of_every_kind_of_layer(case: str) -> None:
    whole, parts = named(case).problem(torch.float32), named(case).problem(torch.float32)
    parts.model.load_state_dict(whole.model.state_dict())
    optimizer = _optimizer(whole, curvature_every=3)
    train(whole, optimizer, 1)
    state = _through_a_file(optimizer.state_dict())
    train(whole, optimizer, 1)
    train(parts, _optimizer(parts), 1)
    resumed = _optimizer(parts, curvature_every=3)
    resumed.load_state_dict(state)
    train(parts, resumed, 1)
    torch.testing.assert_close(flat(parts.model), flat(whole.model), rtol=0, atol=0)


def test_a_curvature_in_full_is_saved_too() -> None:
    problem = Problem(nn.Linear(3, 2), nn.CrossEntropyLoss(), torch.randn(4, 3), torch.randint(2, (4,)))
    other = copy.deepcopy(problem)
    optimizer, resumed = _seldom_in_full(problem), _seldom_in_full(other)
    train(problem, optimizer, 5)  # with 1 I, and once with 2 I
    other.model.load_state_dict(problem.model.state_dict())
    resumed.load_state_dict(_through_a_file(optimizer.state_dict()))
    train(problem, optimizer, 2)
    train(other, resumed, 2)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=0, atol=0)


def test_a_curvature_that_cannot_be_saved_is_made_anew() -> None:
    class Watched(NGD):
        """Notes at which steps it got a curvature, and fails when told to."""

        fails = False

        def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
            if self.fails:
                raise ConnectionError("the device is gone")
            noted.append((self.steps, operator is not None))
            return [drive]

    noted: list[tuple[int, bool]] = []
    problem = Problem(nn.Linear(3, 2), nn.CrossEntropyLoss(), torch.randn(4, 3), torch.randint(2, (4,)))
    options: dict[str, Any] = {
        "lr": 1.0,
        "damping": 0.1,
        "curvature_every": 3,
        "curvature": lambda: Damped(Dense(torch.eye(8)), 1.0),
    }
    optimizer = Watched(problem.model, problem.criterion, **options)
    train(problem, optimizer, 1)
    resumed = Watched(problem.model, problem.criterion, **options)
    resumed.load_state_dict(_through_a_file(optimizer.state_dict()))
    resumed.fails = True
    with pytest.raises(ConnectionError):
        train(problem, resumed, 1)
    resumed.fails = False
    resumed.zero_grad()
    train(problem, resumed, 3)
    assert noted == [(0, True), (1, True), (2, False), (3, True)]


def test_a_checkpoint_is_small_where_a_new_curvature_follows(problem: Problem) -> None:
    optimizer = _optimizer(problem, curvature_every=2)
    train(problem, optimizer, 1)
    assert optimizer.state_dict()["operator"] is not None
    train(problem, optimizer, 1)
    assert optimizer.state_dict()["operator"] is None


def test_a_scheduler_resumes_with_its_optimizer(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    optimizer = _optimizer(problem, lr=0.4)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    for _ in range(3):
        train(problem, optimizer, 1)
        scheduler.step()
    resumed = _optimizer(other, lr=1.0)
    again = lr_scheduler.StepLR(resumed, step_size=2, gamma=0.1)
    resumed.load_state_dict(_through_a_file(optimizer.state_dict()))
    again.load_state_dict(_through_a_file(scheduler.state_dict()))
    other.model.load_state_dict(problem.model.state_dict())
    rates = []
    for _ in range(2):
        train(other, resumed, 1)
        again.step()
        rates.append(resumed.hyperparameters["lr"])
    assert rates == pytest.approx([0.004, 0.004])


def _no_natural_gradient(problem: Problem) -> dict[str, Any]:
    return torch.optim.SGD(problem.model.parameters(), lr=0.1).state_dict()


def _another_model(problem: Problem) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return NGDWoodbury(model, nn.CrossEntropyLoss(), lr=1.0, damping=0.1).state_dict()


def _more_groups(problem: Problem) -> dict[str, Any]:
    return _groups(problem).state_dict()


def _with_betas(problem: Problem) -> dict[str, Any]:
    return _moments(problem).state_dict()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (_no_natural_gradient, "is not that of a natural-gradient optimizer, and NGDWoodbury needs one"),
        (_another_model, r"in group 0 \d+ differ, the first had the shape \(4, 4\) and has "),
        (_more_groups, "has 3 parameter groups, and this NGDWoodbury 1"),
        (_with_betas, "another kind of optimizer than this NGDWoodbury: it has no 'momentum' in group 0"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    problem: Problem, state: Callable[[Problem], dict[str, Any]], message: str
) -> None:
    optimizer = _optimizer(problem, momentum=0.5)
    train(problem, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state(problem))
    assert same(optimizer.state_dict(), before)


def test_a_device_needs_what_a_solver_does_not(problem: Problem) -> None:
    state = _optimizer(problem).state_dict()
    optimizer = TNGD(problem.model, problem.criterion, Recorder(), lr=0.1, damping=0.1, analog_time=1.0)
    with pytest.raises(ValueError, match="of another kind of optimizer than this TNGD: of NGDWoodbury"):
        optimizer.load_state_dict(state)
