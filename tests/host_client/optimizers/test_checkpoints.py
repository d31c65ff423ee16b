"""A run is saved and goes on from there, with the same numbers."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import NGD, TNGD
from host_client.optimizers.base import NaturalGradient
from spu_link.operators import Dense, Kept, Operator
from tests.cases import Problem, named
from tests.host_client.optimizers.fakes import Recorder
from tests.host_client.optimizers.tiny import through_a_file
from tests.host_client.optimizers.training import flat, make_ngd, same, train


def _momentum(problem: Problem) -> NaturalGradient:
    return make_ngd(problem, momentum=0.9, weight_decay=0.01)


def _moments(problem: Problem) -> NaturalGradient:
    return make_ngd(problem, betas=(0.9, 0.99))


def _scheduled(problem: Problem) -> NaturalGradient:
    return make_ngd(problem, lr=lambda step: 0.4 / (1 + step), damping=lambda step: 0.1 * 2**step)


def _groups(problem: Problem) -> NaturalGradient:
    adam = {"params": [problem.model.get_parameter("6.weight")], "adam": True, "lr": 0.05}
    rest = {"params": [problem.model.get_parameter("6.bias")], "lr": 0.3, "momentum": 0.5}
    return make_ngd(problem, groups=[adam, rest])


def _seldom(problem: Problem) -> NaturalGradient:
    return make_ngd(problem, curvature_every=4)


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
    saved = through_a_file({"model": problem.model.state_dict(), "optimizer": optimizer.state_dict()})
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
    optimizer = make_ngd(whole, curvature_every=3)
    train(whole, optimizer, 1)
    state = through_a_file(optimizer.state_dict())
    train(whole, optimizer, 1)
    train(parts, make_ngd(parts), 1)
    resumed = make_ngd(parts, curvature_every=3)
    resumed.load_state_dict(state)
    train(parts, resumed, 1)
    torch.testing.assert_close(flat(parts.model), flat(whole.model), rtol=0, atol=0)


def test_a_curvature_in_full_is_saved_too() -> None:
    problem = Problem(nn.Linear(3, 2), nn.CrossEntropyLoss(), torch.randn(4, 3), torch.randint(2, (4,)))
    other = copy.deepcopy(problem)
    optimizer, resumed = _seldom_in_full(problem), _seldom_in_full(other)
    train(problem, optimizer, 5)  # with 1 I, and once with 2 I
    other.model.load_state_dict(problem.model.state_dict())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    train(problem, optimizer, 2)
    train(other, resumed, 2)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=0, atol=0)


def test_a_curvature_that_cannot_be_saved_is_made_anew() -> None:
    class Watched(NGD):
        """Notes at which steps it got a curvature, and fails on demand."""

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
        "curvature": lambda: Kept(1, 8),
    }
    optimizer = Watched(problem.model, problem.criterion, **options)
    train(problem, optimizer, 1)
    resumed = Watched(problem.model, problem.criterion, **options)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    resumed.fails = True
    with pytest.raises(ConnectionError):
        train(problem, resumed, 1)
    resumed.fails = False
    resumed.zero_grad()
    train(problem, resumed, 3)
    assert noted == [(0, True), (1, True), (2, False), (3, True)]


def test_a_checkpoint_is_small_where_a_new_curvature_follows(problem: Problem) -> None:
    optimizer = make_ngd(problem, curvature_every=2)
    train(problem, optimizer, 1)
    assert optimizer.state_dict()["operator"] is not None
    train(problem, optimizer, 1)
    assert optimizer.state_dict()["operator"] is None


def _another_model(problem: Problem) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return NGD(model, nn.CrossEntropyLoss(), lr=1.0, damping=0.1).state_dict()


def _more_groups(problem: Problem) -> dict[str, Any]:
    return _groups(problem).state_dict()


def _with_betas(problem: Problem) -> dict[str, Any]:
    return _moments(problem).state_dict()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (_another_model, r"in group 0 \d+ differ, the first had the shape \(4, 4\) and has "),
        (_more_groups, "has 3 parameter groups, and this NGD 1"),
        (_with_betas, "another kind of optimizer than this NGD: it has no 'momentum' in group 0"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    problem: Problem, state: Callable[[Problem], dict[str, Any]], message: str
) -> None:
    optimizer = make_ngd(problem, momentum=0.5)
    train(problem, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state(problem))
    assert same(optimizer.state_dict(), before)


def test_a_device_needs_what_a_solver_does_not(problem: Problem) -> None:
    state = make_ngd(problem).state_dict()
    optimizer = TNGD(problem.model, problem.criterion, Recorder(), lr=0.1, damping=0.1, analog_time=1.0)
    with pytest.raises(ValueError, match="of another kind of optimizer than this TNGD: of NGD"):
        optimizer.load_state_dict(state)
