"""torch's LR schedulers over a checkpoint: a resumed run is the run in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from host_client import NGD, TNGD, connect
from tests.host_client.optimizers.tiny import Network, run, through_a_file

STEPS = 4


def _lambda(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def _one_cycle(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=2 * STEPS + 1)


def _restarts(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3)


def _plateau(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)


def _sequential(optimizer: Optimizer) -> LRScheduler:
    warm, rest = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.StepLR(optimizer, 2, 0.5)
    return lr_scheduler.SequentialLR(optimizer, [warm, rest], milestones=[3])


def _chained(optimizer: Optimizer) -> LRScheduler:
    schedulers = [lr_scheduler.ConstantLR(optimizer, 0.1, total_iters=6), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(schedulers, optimizer)


def _cyclic(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.CyclicLR(optimizer, base_lr=0.1, max_lr=0.4, step_size_up=3)


SCHEDULERS = [_lambda, _one_cycle, _restarts, _plateau, _sequential, _chained, _cyclic]


def _momentum(model: Network) -> Optimizer:
    return NGD(model, model.criterion, lr=0.3, damping=0.1, momentum=0.5)


def _plain(model: Network) -> Optimizer:
    """Its momentum is the scheduler's, if there is any."""
    return NGD(model, model.criterion, lr=0.3, damping=0.1)


def _betas(model: Network) -> Optimizer:
    return NGD(model, model.criterion, lr=0.3, damping=0.1, betas=(0.8, 0.9))


def _groups(model: Network) -> Optimizer:
    adam = {"params": model.get_submodule("3").parameters(), "adam": True}
    return NGD(model, model.criterion, lr=0.3, damping=0.1, momentum=0.5, groups=[adam])


def _save(model: Network, optimizer: Optimizer, scheduler: LRScheduler) -> dict[str, Any]:
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return through_a_file(states)


def _load(saved: dict[str, Any], model: Network, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])


@pytest.mark.parametrize("make", [_momentum, _plain, _betas, _groups])
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_scheduler_made_before_loading_resumes_bit_for_bit(
    make: Callable[[Network], Optimizer], schedule: Callable[[Optimizer], LRScheduler]
) -> None:
    model = Network()
    optimizer = make(model)
    scheduler = schedule(optimizer)
    run(model, optimizer, range(STEPS), scheduler)
    saved = _save(model, optimizer, scheduler)
    whole = run(model, optimizer, range(STEPS, 2 * STEPS), scheduler)

    other = Network()
    resumed = make(other)
    again = schedule(resumed)
    _load(saved, other, resumed, again)
    rest = run(other, resumed, range(STEPS, 2 * STEPS), again)
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_scheduler_made_after_loading_gives_the_groups_what_it_gives_those_of_sgd(
    schedule: Callable[[Optimizer], LRScheduler],
) -> None:
    def numbers(make: Callable[[Network], Optimizer]) -> list[dict[str, Any]]:
        model = Network()
        optimizer = make(model)
        scheduler = schedule(optimizer)
        run(model, optimizer, range(STEPS), scheduler)
        saved = _save(model, optimizer, scheduler)
        resumed = make(model)
        resumed.load_state_dict(saved["optimizer"])
        again = schedule(resumed)
        again.load_state_dict(saved["scheduler"])
        seen = []
        for step in range(STEPS, 2 * STEPS):
            run(model, resumed, range(step, step + 1), again)
            seen.append({name: resumed.param_groups[0][name] for name in shared if name in resumed.param_groups[0]})
        return seen

    shared = ("lr", "initial_lr", "momentum", "max_lr", "min_lr", "base_momentum", "max_momentum", "weight_decay")
    assert numbers(_momentum) == numbers(lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5))


def test_a_scheduler_made_after_loading_with_its_last_epoch_resumes_bit_for_bit() -> None:
    model = Network()
    optimizer = _momentum(model)
    scheduler = _lambda(optimizer)
    run(model, optimizer, range(STEPS), scheduler)
    saved = _save(model, optimizer, scheduler)
    whole = run(model, optimizer, range(STEPS, 2 * STEPS), scheduler)
    other = Network()
    other.load_state_dict(saved["model"])
    resumed = _momentum(other)
    resumed.load_state_dict(saved["optimizer"])
    again = lr_scheduler.LambdaLR(resumed, lambda step: 1 / (1 + step), last_epoch=STEPS - 1)
    rest = run(other, resumed, range(STEPS, 2 * STEPS), again)
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))


def test_a_run_with_a_scheduler_goes_on_without_one_and_the_other_way_round() -> None:
    model = Network()
    optimizer = _momentum(model)
    before = optimizer.state_dict()
    _one_cycle(optimizer)
    optimizer.load_state_dict(before)  # has no initial_lr, max_lr, … of the scheduler
    assert optimizer.param_groups[0]["max_lr"] == 0.5
    assert optimizer.param_groups[0]["momentum"] == 0.5
    other = _momentum(Network())
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["max_lr"] == 0.5


def test_a_learning_rate_of_a_schedule_that_a_scheduler_changes_is_still_refused_after_loading() -> None:
    model = Network()
    optimizer = NGD(model, model.criterion, lr=lambda step: 0.1, damping=0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    run(model, optimizer, range(1))
    lr_scheduler.ConstantLR(optimizer, factor=0.5)
    with pytest.raises(ValueError, match="lr of group 0 follows a schedule"):
        run(model, optimizer, range(1))


def test_a_device_and_its_scheduler_resume_bit_for_bit() -> None:
    def make(session: Any) -> tuple[Network, TNGD, LRScheduler]:
        model = Network()
        optimizer = TNGD(model, model.criterion, session, lr=0.1, damping=0.1, analog_time=5.0, noise=1e-4)
        return model, optimizer, _one_cycle(optimizer)

    with connect("inproc:", clock="stepped", seed=3) as spu, spu.session() as session:
        model, optimizer, scheduler = make(session)
        run(model, optimizer, range(STEPS), scheduler)
        saved = _save(model, optimizer, scheduler)
        whole = run(model, optimizer, range(STEPS, 2 * STEPS), scheduler)
    with connect("inproc:", clock="stepped", seed=3) as spu, spu.session() as session:
        other, resumed, again = make(session)
        _load(saved, other, resumed, again)
        rest = run(other, resumed, range(STEPS, 2 * STEPS), again)
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))
