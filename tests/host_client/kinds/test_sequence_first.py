"""Kind K: the samples do not lead: tokens before samples, and models that take one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.host_client.kinds.reference import assert_curvature, assert_same, captured, classes, double, of_cross_entropy
from tests.host_client.kinds.sequences import FLATTENED, SEQUENCES, assert_tokens_before_samples
from tests.networks import Function

pytestmark = [
    pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]


@pytest.mark.parametrize("flattened", FLATTENED)
@pytest.mark.parametrize("name", SEQUENCES)
def test_tokens_before_samples(name: str, flattened: str) -> None:
    assert_tokens_before_samples(name, flattened)


def _one(m: Function, x: Tensor) -> Tensor:
    logits: Tensor = m.head(m.body(x).tanh())  # type: ignore[operator]
    return logits


def _one_of_tokens(m: Function, x: Tensor) -> Tensor:
    """One sample (s, 4) without a batch dimension."""
    logits: Tensor = m.head(m.body(x).tanh().mean(0))  # type: ignore[operator]
    return logits


Loop: TypeAlias = tuple[Callable[[Function, Tensor], Tensor], tuple[int, ...], Callable[[nn.Module, Tensor], Tensor]]
"""A model of one sample, the shape of a sample, and the logits of all."""

PER_SAMPLE: dict[str, Loop] = {
    "stack": (_one, (4,), lambda m, x: torch.stack([m(row) for row in x])),
    "stack of samples with tokens": (_one_of_tokens, (2, 4), lambda m, x: torch.stack([m(row) for row in x])),
    "cat of samples with tokens": (_one_of_tokens, (2, 4), lambda m, x: torch.cat([m(row)[None] for row in x])),
    "cat and view": (_one, (4,), lambda m, x: torch.cat([m(row) for row in x]).view(len(x), -1)),
    "samples with other numbers of tokens": (
        _one_of_tokens, (3, 4), lambda m, x: torch.stack([m(row[: 1 + i % 3]) for i, row in enumerate(x)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_model_of_one_sample_in_a_loop(name: str) -> None:
    forward, shape, call = PER_SAMPLE[name]
    model = Function(forward, body=nn.Linear(4, 5), head=nn.Linear(5, 3)).double()
    assert_curvature(model, [(double(samples, *shape, seed=samples), classes(samples)) for samples in (4, 3)], call)


def test_losses_of_single_samples_added_up() -> None:
    """One call of the criterion for each sample, and one backward pass for all."""
    model = Function(_one, body=nn.Linear(4, 5), head=nn.Linear(5, 3)).double()
    criterion, x, y = nn.CrossEntropyLoss(), double(4, 4), classes(4)
    expected = of_cross_entropy(model(x), y, model)
    capture = Capture(model, criterion)
    loss = sum(criterion(model(row), label) for row, label in zip(x, y, strict=True)) / 4
    assert_same(captured(capture, loss), expected, model)
