"""Half-precision inputs, confident models, and that nothing waits for an accelerator."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from host_client.curvature.losses import loss_call
from tests.host_client.curvature.losses.problems import with_graph

KINDS = ["exact", "mc", "empirical"]
CASES = [
    (nn.CrossEntropyLoss(), (4, 3), torch.tensor([0, 2, -100, 1])),
    (nn.CrossEntropyLoss(torch.tensor([1.0, 0.5, 2.0]), label_smoothing=0.1), (4, 3), torch.tensor([0, 2, 0, 1])),
    (nn.CrossEntropyLoss(), (2, 3, 2), torch.rand(2, 3, 2).softmax(1)),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])), (4, 3), torch.rand(4, 3)),
    (nn.MSELoss(), (4, 3), torch.rand(4, 3)),
    (nn.HuberLoss(), (4, 3), torch.rand(4, 3)),
    (nn.PoissonNLLLoss(), (4, 3), torch.rand(4, 3)),
]


def _columns(criterion: nn.Module, z: Tensor, target: Tensor, kind: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return loss_call(criterion, (with_graph(z), target), {}, None).root(kind, 2, generator)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("criterion", "shape", "target"), CASES)
def test_half_precision_is_computed_in_float32_and_rounded_once(
    criterion: nn.Module, shape: tuple[int, ...], target: Tensor, dtype: torch.dtype, kind: str
) -> None:
    z = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(2))).to(dtype)
    columns = _columns(criterion, z, target, kind)
    assert columns.dtype == dtype
    assert torch.equal(columns, _columns(criterion, z.float(), target, kind).to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_criteria_cast_with_the_model(kind: str) -> None:
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5, 2.0]))
    z, target = torch.randn(4, 3).bfloat16(), torch.rand(4, 3).softmax(1).bfloat16()
    halved = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5, 2.0])).bfloat16()
    torch.testing.assert_close(_columns(halved, z, target, kind), _columns(criterion, z, target.float(), kind))


def test_the_mean_over_more_elements_than_half_precision_can_count() -> None:
    z, target = torch.zeros(1, 2, 70_000, dtype=torch.float16), torch.zeros(1, 70_000, dtype=torch.long)
    columns = _columns(nn.CrossEntropyLoss(), z, target, "mc")
    torch.testing.assert_close(columns.abs().float().amax(), torch.tensor(0.5**1.5 / 70_000**0.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("margin", [0.0, 5.0, 20.0, 60.0])
def test_float32_is_accurate_to_rounding_however_sure_the_model_is(margin: float) -> None:
    z, ones = torch.tensor([-margin, margin]), torch.ones(2)
    logits, probabilities = z.double(), z.double().sigmoid()
    sure = logits.sigmoid() * logits.neg().sigmoid() / 2
    for criterion, x, expected in [
        (nn.BCEWithLogitsLoss(), z, sure),
        (nn.SoftMarginLoss(), z, sure),
        (nn.BCELoss(), probabilities.float(), 1 / probabilities.clamp_min(1e-12) ** 2 / 2),
    ]:
        squares = _columns(criterion, x, ones, "exact")[0].square()
        torch.testing.assert_close(squares, expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("criterion", "shape", "target"), CASES)
def test_nothing_waits_for_a_value(criterion: nn.Module, shape: tuple[int, ...], target: Tensor, kind: str) -> None:
    criterion = copy.deepcopy(criterion)
    _columns(criterion, torch.rand(shape), target, kind)  # the first call of a criterion may
    if isinstance(criterion, nn.CrossEntropyLoss):
        # Fake tensors have no values: whoever asks for one gets an error.
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            z = mode.from_tensor(torch.randn(shape))
            loss_call(criterion, (with_graph(z), mode.from_tensor(target)), {}, None).root(kind, 2, None)  # type: ignore[arg-type]
    else:
        # Neither have tensors of the device "meta", which is, as opposed to "cpu", one that is waited for.
        z = with_graph(torch.randn(shape, device="meta"))
        loss_call(criterion.to("meta"), (z, target.to("meta")), {}, None).root(kind, 2, None)  # type: ignore[arg-type]


def test_a_log_softmax_is_normalised_without_waiting_for_its_values() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        z = mode.from_tensor(torch.randn(4, 3)).requires_grad_().log_softmax(-1)
        target = mode.from_tensor(torch.tensor([0, 2, -100, 1]))
        loss_call(nn.NLLLoss(), (z, target), {}, None).root("exact", 2, None)


def test_a_root_leaves_no_graph_and_no_gradient() -> None:
    leaf, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    for kind in KINDS:
        columns = loss_call(nn.CrossEntropyLoss(), (2 * leaf, target), {}, None).root(kind, 2, None)  # type: ignore[arg-type]
        assert not columns[0].requires_grad
    assert leaf.grad is None
