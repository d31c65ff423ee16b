"""Kind R: a trust region bounds the whole update: with momentum, weight decay and whatever else is in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import TNGD, NGDWoodbury, Session
from tests.host_client.kinds.reference import classes, double, gauss_newton

RADIUS = 0.01
WAYS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9, "lr": 0.5},
    "momentum and weight decay": {"momentum": 0.9, "lr": 0.5, "weight_decay": 0.05},
    "weight decay": {"lr": 0.5, "weight_decay": 0.5},
    "momentum at a rising rate": {"momentum": 0.9, "lr": lambda step: 0.2 * (1 + step)},
}


def _quadratic(model: nn.Module, x: Tensor, y: Tensor, update: Tensor) -> float:
    """½ ΔᵀFΔ at the parameters before the step."""
    f = gauss_newton([(model(x), lambda z: F.cross_entropy(z, y))], list(model.parameters()))
    return float(update @ f @ update) / 2


@pytest.mark.parametrize("way", WAYS)
def test_no_update_is_longer_than_the_radius(way: str) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p *= 3
    criterion = nn.CrossEntropyLoss()
    optimizer = NGDWoodbury(model, criterion, damping=1e-3, trust_region=RADIUS, **WAYS[way])
    lengths = []
    for seed in range(12):
        x, y = double(8, 4, seed=seed), classes(8)
        twin = copy.deepcopy(model)
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        after, before = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (model, twin))
        lengths.append(_quadratic(twin, x, y, after - before))
    assert max(lengths) <= RADIUS * (1 + 1e-6)
    assert max(lengths) >= 0.5 * RADIUS, "the bound is used"


def _pictures(count: int = 512, features: int = 36) -> tuple[Tensor, Tensor]:
    """Ten classes of noisy pictures, a stand-in for MNIST that is made here."""
    generator = torch.Generator().manual_seed(0)
    centres, y = torch.randn(10, features, generator=generator), torch.arange(count) % 10
    return centres[y] + torch.randn(count, features, generator=generator), y


@pytest.mark.parametrize("on_a_device", [True, False], ids=["TNGD", "NGDWoodbury"])
def test_training_with_momentum_stays_bounded(on_a_device: bool, session: Session) -> None:
    """With the bound on g̃ alone the loss goes from 2.5 to 7e16 in these 60 steps."""
    x, y = _pictures()
    model, criterion = nn.Sequential(nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10)), nn.CrossEntropyLoss()
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "trust_region": 0.01, "damping": 0.01}
    optimizer: torch.optim.Optimizer
    if on_a_device:
        optimizer = TNGD(model, criterion, session, analog_time=50.0, **options)
    else:
        optimizer = NGDWoodbury(model, criterion, **options)
    losses, order = [], torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = torch.randint(len(x), (64,), generator=order)
        optimizer.zero_grad()
        loss = criterion(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) <= 1.2 * losses[0]
    assert losses[-1] < 0.5 * losses[0]
