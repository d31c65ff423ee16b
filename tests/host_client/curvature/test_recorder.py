"""What is recorded of a forward pass."""

from collections.abc import Callable, Sequence
from typing import NoReturn

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client.curvature.recorder import Recorder, Recording
from host_client.curvature.rules.broadcast import Broadcast
from host_client.curvature.rules.linear import Product


def _refuse(state: Sequence[Tensor]) -> NoReturn:
    raise AssertionError("mixes")


def _record(function: Callable[[], object], *parameters: nn.Parameter) -> Recording:
    recorder = Recorder(parameters, _refuse)
    recorder.enter()
    try:
        function()
    finally:
        recording = recorder.leave()
    assert recording is not None
    return recording


GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, BIAS = (nn.Parameter(torch.randn(*shape, generator=GENERATOR)) for shape in ((6, 4), (6,)))
X = torch.randn(3, 4, generator=GENERATOR)


@pytest.mark.parametrize(
    ("function", "operation", "start"),
    [
        (lambda: F.linear(X, WEIGHT, BIAS), Product, 0),
        (lambda: X @ WEIGHT.T, Product, 0),
        (lambda: X.matmul(WEIGHT.t()), Product, 0),
        (lambda: F.linear(X, WEIGHT[2:4]), Product, 8),
        (lambda: F.linear(X, WEIGHT.chunk(3)[2]), Product, 16),
        (lambda: X * WEIGHT[1], Broadcast, 4),
        (lambda: X - WEIGHT[1], Broadcast, 4),
        (lambda: WEIGHT[1] - X, Broadcast, 4),
        (lambda: X.clone().add_(WEIGHT[0]), Broadcast, 0),
        (lambda: WEIGHT[None].expand(3, -1, -1), Broadcast, 0),
        (lambda: F.layer_norm(X, (4,), WEIGHT[0]), Broadcast, 0),
    ],
)
def test_functions_with_rules(function: Callable[[], object], operation: type, start: int) -> None:
    recording = _record(function, WEIGHT, BIAS)
    (use,) = recording.uses
    assert isinstance(use.operation, operation)
    assert next(s for s in use.sources.values() if s.parameter == 0).start == start
    assert not recording.unruled


@pytest.mark.parametrize(
    "function",
    [
        lambda: WEIGHT.exp(),
        lambda: torch.cat([X, WEIGHT]),
        lambda: F.linear(X, WEIGHT.double().float()),
        lambda: 2 * WEIGHT,
        lambda: X.clone().mul_(WEIGHT[0]),
    ],
)
def test_functions_without(function: Callable[[], object]) -> None:
    recording = _record(function, WEIGHT, BIAS)
    assert not recording.uses
    assert {index for index, _, _ in recording.unruled} == {0}


def test_nothing_is_recorded_of_what_has_no_gradients() -> None:
    def function() -> None:
        with torch.no_grad():
            F.linear(X, WEIGHT, BIAS)
        WEIGHT.detach() @ X.T
        assert WEIGHT.shape == (6, 4)
        assert WEIGHT.to(WEIGHT.device) is WEIGHT
        (X.requires_grad_(False) * 2).sum()

    recording = _record(function, WEIGHT, BIAS)
    assert not recording.uses
    assert not recording.unruled
    assert not recording.taken


def test_attention_is_seen_from_inside() -> None:
    attention = nn.MultiheadAttention(4, 2)
    x = torch.randn(5, 3, 4)
    recording = _record(lambda: attention(x, x, x), *attention.parameters())
    assert [use.function for use in recording.uses] == ["linear", "linear"]
    assert not recording.unruled


def test_code_that_differs_has_another_path() -> None:
    def pass_of(dim: int) -> int:
        return _record(lambda: F.linear(X, WEIGHT).mean(dim), WEIGHT).path

    assert pass_of(0) == pass_of(0)
    assert pass_of(0) != pass_of(1)


def test_batch_statistics_are_refused_wherever_they_are() -> None:
    with pytest.raises(AssertionError, match="mixes"):
        _record(lambda: F.batch_norm(X, None, None, training=True), WEIGHT)
    with pytest.raises(AssertionError, match="mixes"):
        _record(lambda: torch.batch_norm(X, None, None, None, None, True, 0.1, 1e-5, False), WEIGHT)
    F.batch_norm(X, torch.zeros(4), torch.ones(4))
