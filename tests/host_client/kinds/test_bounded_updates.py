"""Kind R: a trust region bounds the whole update: with momentum, weight decay and whatever else is in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import NGD, TNGD, Session


def _pictures(count: int = 512, features: int = 36) -> tuple[Tensor, Tensor]:
    """Ten classes of noisy pictures, a stand-in for MNIST that is made here."""
    generator = torch.Generator().manual_seed(0)
    centres, y = torch.randn(10, features, generator=generator), torch.arange(count) % 10
    return centres[y] + torch.randn(count, features, generator=generator), y


@pytest.mark.parametrize("on_a_device", [True, False], ids=["TNGD", "NGD"])
def test_training_with_momentum_stays_bounded(on_a_device: bool, session: Session) -> None:
    """With the bound on g̃ alone the loss goes from 2.5 to 7e16 in these 60 steps."""
    x, y = _pictures()
    model, criterion = nn.Sequential(nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10)), nn.CrossEntropyLoss()
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "trust_region": 0.01, "damping": 0.01}
    optimizer: torch.optim.Optimizer
    if on_a_device:
        optimizer = TNGD(model, criterion, session, analog_time=50.0, **options)
    else:
        optimizer = NGD(model, criterion, **options)
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
