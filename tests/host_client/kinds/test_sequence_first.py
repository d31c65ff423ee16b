"""Kind K: the samples do not lead: tokens before samples, and models that take one sample at a time."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.host_client.kinds.reference import assert_same, captured, classes, double, gauss_newton
from tests.host_client.kinds.sequences import FLATTENED, RIGHT, SEQUENCES, assert_tokens_before_samples
from tests.networks import Function

pytestmark = [
    pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]


@pytest.mark.parametrize(
    ("name", "flattened"), [pair for pair in itertools.product(SEQUENCES, FLATTENED) if pair not in RIGHT]
)
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
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    for samples in (4, 3):
        x, y = double(samples, *shape, seed=samples), classes(samples)
        expected = gauss_newton([(call(twin, x), lambda z, y=y: F.cross_entropy(z, y))], list(twin.parameters()))
        assert_same(captured(capture, criterion(call(model, x), y)), expected, model)


def test_losses_of_single_samples_added_up() -> None:
    """One call of the criterion for each sample, and one backward pass for all."""
    model = Function(_one, body=nn.Linear(4, 5), head=nn.Linear(5, 3)).double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    x, y = double(4, 4), classes(4)
    loss = sum(criterion(model(row), label) for row, label in zip(x, y, strict=True)) / 4
    expected = gauss_newton([(twin(x), lambda z: F.cross_entropy(z, y))], list(twin.parameters()))
    assert_same(captured(capture, loss), expected, model)
