"""Kind G: the number of samples is not that of the rows of what the model was given, or gives out first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.host_client.kinds.reference import assert_curvature, classes, double

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")

SAMPLES = 8


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Stateful(nn.Module):
    """A recurrent network that gives out its last state, of shape (layers, b, 5), and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(9, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """State and logits."""
        state = x.new_zeros(len(x), 5)
        for _ in range(2):
            state = self.cell(torch.cat([x, state], 1)).tanh()
        return state[None], self.head(state)


class Attending(nn.Module):
    """Gives out weights of shape (heads, b, 2) before its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Weights and logits."""
        weights = self.weights(x)
        return {"weights": weights.view(-1, 2, 2).transpose(0, 1), "logits": self.head(weights.tanh())}


class Reporting(nn.Module):
    """Gives out a penalty of shape (1,) before its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penalty and logits."""
        logits = self.body(x)
        return logits.square().mean().view(1), logits


class Codes(nn.Module):
    """Adds a learnt table to its input, which comes as one row of all samples' numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _network()

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (1, b, 3) from (1, b, 4)."""
        logits: Tensor = self.body(x)
        return logits


LOOPS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "cat of calls for one sample each": (_network, lambda m, x: torch.cat([m(row[None]) for row in x])),
    "stack of calls for one sample each": (_network, lambda m, x: torch.stack([m(row) for row in x])),
    "cat of calls for two samples each": (_network, lambda m, x: torch.cat([m(two) for two in x.split(2)])),
    "cat of calls for unequal parts": (_network, lambda m, x: torch.cat([m(part) for part in x.split([1, 5, 2])])),
    "(state, logits)": (Stateful, lambda m, x: m(x)[1]),
    "weights before logits": (Attending, lambda m, x: m(x)["logits"]),
    "penalty before logits": (Reporting, lambda m, x: m(x)[1]),
    "a leading extent of one": (Codes, lambda m, x: m(x[None])[0]),
}


@pytest.mark.parametrize("name", LOOPS)
def test_each_sample_has_a_gradient_of_its_own(name: str) -> None:
    make, logits = LOOPS[name]
    assert_curvature(make().double(), [(double(SAMPLES, 4), classes(SAMPLES))], logits, kind="empirical")


@pytest.mark.parametrize("name", ["cat of calls for one sample each", "(state, logits)"])
def test_each_sample_has_draws_of_its_own(name: str) -> None:
    """With labels drawn from the model there are `samples` rows for each sample, and no fewer."""
    make, logits = LOOPS[name]
    model = make().double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature="mc", samples=2)
    x, y = double(SAMPLES, 4), classes(SAMPLES)
    criterion(logits(model, x), y).backward()
    a = capture.operator_of_gradients().dense()
    assert int((a.norm(dim=1) > 0).sum()) == 2 * SAMPLES
    assert torch.linalg.matrix_rank(a) >= SAMPLES
