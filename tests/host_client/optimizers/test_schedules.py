"""Hyperparameters that change: schedules of one's own, and torch's LR schedulers."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from host_client import TNGD
from tests.cases import Problem
from tests.host_client.optimizers.fakes import Recorder
from tests.host_client.optimizers.training import flat, make_ngd, train


def test_scheduled_hyperparameters_are_those_of_each_step(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    schedules: dict[str, Callable[[int], float]] = {
        "lr": lambda step: 0.4 / (1 + step),
        "damping": lambda step: 0.1 * 2**step,
        "momentum": lambda step: min(0.9, 0.3 * step),
        "weight_decay": lambda step: 0.01 * step,
    }
    scheduled, plain = make_ngd(problem, **schedules), make_ngd(other)
    for step in range(4):
        plain.hyperparameters.update({name: value(step) for name, value in schedules.items()})
        train(problem, scheduled, 1)
        train(other, plain, 1)
        torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=0, atol=0)
        assert scheduled.hyperparameters["damping"] == 0.1 * 2**step


def test_settings_of_the_device_can_be_scheduled(problem: Problem) -> None:
    recorder = Recorder()
    optimizer = TNGD(
        problem.model,
        problem.criterion,
        recorder,
        lr=0.1,
        damping=lambda step: 1.0 / (1 + step),
        analog_time=lambda step: 10.0 + step,
        delay=lambda step: 0.5 * step,
        noise=lambda step: 1e-3 * step,
    )
    train(problem, optimizer, 3)
    settings = [
        (asked["program"].damping, asked["sampling"].analog_time, asked["program"].noise) for asked in recorder.asked
    ]
    assert settings == [(1.0, 10.0, 0.0), (0.5, 11.0, 1e-3), (1 / 3, 12.0, 2e-3)]
    assert [asked["sampling"].delay for asked in recorder.asked] == [0.0, 0.5, 1.0]


def test_a_group_has_a_schedule_of_its_own(problem: Problem) -> None:
    last = [problem.model.get_parameter("6.weight")]
    optimizer = make_ngd(problem, lr=lambda step: 0.1, groups=[{"params": last, "lr": lambda step: 0.0 + step}])
    before = last[0].detach().clone()
    train(problem, optimizer, 1)
    torch.testing.assert_close(last[0].detach(), before, rtol=0, atol=0)
    train(problem, optimizer, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]
    assert not torch.equal(last[0], before)


def test_a_schedule_that_leaves_the_range_stops_before_anything_is_done(problem: Problem) -> None:
    optimizer = make_ngd(problem, lr=lambda step: 0.1, damping=lambda step: 0.1 - 0.1 * step)
    train(problem, optimizer, 1)
    before = flat(problem.model)
    with pytest.raises(ValueError, match=r"Invalid damping: 0\.0; a digital solve needs more than 0"):
        train(problem, optimizer, 1)
    torch.testing.assert_close(flat(problem.model), before, rtol=0, atol=0)
    assert (optimizer.steps, optimizer.hyperparameters["damping"]) == (1, 0.1)
    with pytest.raises(ValueError, match=r"Invalid lr: -1\.0; it must be at least 0"):
        make_ngd(problem, lr=lambda step: -1.0)


def test_a_schedule_and_a_scheduler_of_the_same_hyperparameter_are_refused(problem: Problem) -> None:
    optimizer = make_ngd(problem, lr=lambda step: 0.1)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    train(problem, optimizer, 1)
    scheduler.step()
    with pytest.raises(ValueError, match=r"lr of group 0 follows a schedule, and has been set to 0\.05 in addition"):
        train(problem, optimizer, 1)


def test_a_schedule_comes_with_the_optimizer_and_not_later(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    optimizer.hyperparameters["lr"] = lambda step: 0.1
    with pytest.raises(ValueError, match="Invalid lr: a function; set a number"):
        train(problem, optimizer, 1)


def _step(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


def _lambda(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, [lambda epoch: 1 / (1 + epoch), lambda epoch: 0.5**epoch])


def _cosine(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)


def _one_cycle(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=[0.5, 0.2], total_steps=6)


@pytest.mark.parametrize("scheduler", [_step, _lambda, _cosine, _one_cycle])
def test_schedulers_of_torch_do_to_the_groups_what_they_do_to_sgd(
    problem: Problem, scheduler: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
) -> None:
    """A preconditioned SGD, with the same scheduler, is the reference."""
    other = copy.deepcopy(problem)

    def groups(one: Problem) -> list[dict[str, Any]]:
        return [{"params": [one.model.get_parameter("6.weight")], "lr": 0.3, "momentum": 0.5}]

    optimizer, preconditioner = make_ngd(problem, momentum=0.9, groups=groups(problem)), make_ngd(other)
    named = groups(other)[0]["params"][0]
    rest = [p for p in other.model.parameters() if p is not named]
    sgd = torch.optim.SGD([{"params": rest}, *groups(other)], lr=0.1, momentum=0.9)
    sgd.register_step_pre_hook(lambda *_: preconditioner.precondition())
    a, b = scheduler(optimizer), scheduler(sgd)
    rates = []
    for _ in range(5):
        train(problem, optimizer, 1)
        train(other, sgd, 1)
        a.step()
        b.step()
        rates.append(optimizer.hyperparameters["lr"])
        for mine, theirs in zip(optimizer.param_groups, sgd.param_groups, strict=True):
            assert (mine["lr"], mine["momentum"]) == (theirs["lr"], theirs["momentum"])
    assert len(set(rates)) > 1
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=1e-5, atol=1e-6)


def test_one_cycle_turns_the_momentum_too(problem: Problem) -> None:
    optimizer = make_ngd(problem, groups=[{"params": [problem.model.get_parameter("6.weight")], "adam": True}])
    scheduler = lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=6, pct_start=0.5, base_momentum=0.8, max_momentum=0.9
    )
    seen = []
    for _ in range(5):
        train(problem, optimizer, 1)
        seen.append(optimizer.hyperparameters["momentum"])
        scheduler.step()
    assert (seen[0], min(seen)) == (0.9, pytest.approx(0.8))
    with_betas = make_ngd(copy.deepcopy(problem), betas=(0.9, 0.99))
    lr_scheduler.OneCycleLR(with_betas, max_lr=0.5, total_steps=6)
    assert with_betas.hyperparameters["betas"] == (0.95, 0.99)


def test_reduce_on_plateau_acts_on_the_groups(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    for loss in (1.0, 1.0, 1.0):
        train(problem, optimizer, 1)
        scheduler.step(loss)
    assert math.isclose(optimizer.hyperparameters["lr"], 1e-3)
