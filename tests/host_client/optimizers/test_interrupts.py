"""A Ctrl-C at any place of a step leaves torch's mode of gradients as the user has it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn

from host_client import NGD


def interrupt_an_end_of_no_grad(monkeypatch: pytest.MonkeyPatch, place: int) -> list[int]:
    """Interrupt the end of a context of `no_grad`, that of this number, before it does anything; count them all."""
    end, ended = torch.no_grad.__exit__, [0]

    def interrupted(self: torch.no_grad, *error: Any) -> None:
        ended[0] += 1
        if ended[0] == place:
            raise KeyboardInterrupt
        end(self, *error)

    monkeypatch.setattr(torch.no_grad, "__exit__", interrupted)
    return ended


def test_gradients_are_on_after_an_interrupt_wherever_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model, criterion = nn.Linear(3, 2), nn.MSELoss()
    place = 0
    while True:
        place += 1
        with closing(NGD(model, criterion, lr=0.1, damping=0.1)) as optimizer, monkeypatch.context() as patched:
            ended = interrupt_an_end_of_no_grad(patched, place)
            try:
                criterion(model(torch.ones(4, 3)), torch.zeros(4, 2)).backward()
                optimizer.step()
            except KeyboardInterrupt:
                pass
            else:
                assert ended[0] < place
                break
            assert torch.is_grad_enabled(), f"after an interrupt of end {place}"
    assert place > 3  # of the capture, and of the step
