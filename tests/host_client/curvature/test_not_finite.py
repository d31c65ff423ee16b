"""A loss that is not finite is reported where it begins, before anything is sent to a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from host_client import NGD, Diverged
from host_client.curvature import Capture


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def test_an_input_that_is_not_finite_is_named_by_the_layer_that_takes_it() -> None:
    model, sent = _model(), list[Any]()
    capture = Capture(model, nn.CrossEntropyLoss(), on_operator=sent.append)
    x = torch.randn(4, 1, 5)
    x[2, 0, 1] = torch.nan
    with pytest.raises(Diverged, match=r"step 1: the input of '0' is not finite.*lower lr"):
        capture.criterion(model(x), torch.tensor([0, 1, 2, 0]))
    assert sent == []


def test_a_parameter_that_is_not_finite_is_named() -> None:
    model = _model()
    capture = Capture(model, nn.CrossEntropyLoss())
    with torch.no_grad():
        model[2].bias[1] = torch.nan
    with pytest.raises(Diverged, match=r"parameter '2.bias'"):
        capture.criterion(model(torch.randn(4, 1, 5)), torch.tensor([0, 1, 2, 0]))


def test_an_activation_that_overflows_is_named_by_the_layer_that_takes_it() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    nn.init.constant_(model[0].weight, 2.0)
    capture = Capture(model, nn.MSELoss())
    with pytest.raises(Diverged, match=r"input of '1'"):
        capture.criterion(model(torch.full((2, 2), 3e38)), torch.zeros(2, 1))


def test_a_loss_of_finite_outputs_is_named_itself() -> None:
    model = nn.Linear(2, 1)
    capture = Capture(model, nn.MSELoss())
    with pytest.raises(Diverged, match="the loss is not finite") as raised:
        capture.criterion(model(torch.randn(2, 2)), torch.full((2, 1), 3e38))
    assert (raised.value.step, raised.value.tensor) == (1, "loss")


def test_the_step_is_the_one_to_come() -> None:
    model, criterion = nn.Linear(2, 1), nn.MSELoss()
    optimizer = NGD(model, criterion, lr=0.1, damping=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(torch.randn(2, 2)), torch.zeros(2, 1)).backward()
        optimizer.step()
    with pytest.raises(Diverged, match="step 3"):
        criterion(model(torch.full((2, 2), torch.nan)), torch.zeros(2, 1))


def test_under_a_gradient_scaler_the_step_is_left_to_it() -> None:
    model, criterion = nn.Linear(2, 1), nn.MSELoss()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer = NGD(model, criterion, lr=0.1, damping=0.1, grad_scaler=scaler)
    before = model.weight.detach().clone()
    scaler.scale(criterion(model(torch.full((2, 2), torch.inf)), torch.zeros(2, 1))).backward()
    scaler.step(optimizer)
    assert torch.equal(model.weight, before)
