"""A trust region and adapted damping with the natural gradient read from a device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from host_client import TNGD, Session, connect
from host_client.optimizers import LevenbergMarquardt
from tests.cases import Problem
from tests.host_client.optimizers.training import closure_of


@pytest.fixture
def session() -> Iterator[Session]:
    with connect("inproc:", clock="stepped", seed=0) as spu, spu.session() as one:
        yield one


@pytest.fixture
def softmax() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    inputs = torch.randn(48, 6)
    return Problem(model, nn.CrossEntropyLoss(), inputs, (inputs @ torch.randn(6, 4)).argmax(1))


def test_readings_are_bounded_however_noisy_they_are(softmax: Problem, session: Session) -> None:
    optimizer = TNGD(
        softmax.model,
        softmax.criterion,
        session,
        lr=1e3,
        damping=0.01,
        analog_time=5.0,
        noise=0.1,
        trust_region=1e-4,
    )
    for _ in range(3):
        with torch.no_grad():
            before = log_softmax(softmax.model(softmax.inputs), 1)
        optimizer.step(closure_of(softmax, optimizer))
        with torch.no_grad():
            after = log_softmax(softmax.model(softmax.inputs), 1)
        moved = float(kl_div(after, before, reduction="batchmean", log_target=True))
        assert 0.0 < moved <= 1e-4 * 1.1
    assert optimizer.counts["trust region"] == 3


def test_the_device_hears_of_adapted_damping_and_not_of_the_second_look(softmax: Problem, session: Session) -> None:
    rule = LevenbergMarquardt(every=2, grow=2.0, shrink=0.5)
    optimizer = TNGD(
        softmax.model, softmax.criterion, session, lr=0.5, damping=0.1, analog_time=20.0, adapt_damping=rule
    )
    losses = [optimizer.step(closure_of(softmax, optimizer)) for _ in range(6)]
    assert optimizer.last_reading is not None
    assert optimizer.last_reading.sequence == 6
    assert optimizer.hyperparameters["damping"] in (0.1 / 8, 0.1 / 2, 0.1 * 2, 0.1 * 8)
    assert optimizer.counts["damping shrunk"] + optimizer.counts["damping grown"] == 3
    assert losses[-1] < losses[0]
