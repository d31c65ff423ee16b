"""Half-precision inputs, and that nothing waits for an accelerator."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from host_client.curvature.losses import loss_root

KINDS = ["exact", "mc", "empirical"]
WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5, 2.0]), label_smoothing=0.1)
CASES = [
    (nn.CrossEntropyLoss(), (4, 3), torch.tensor([0, 2, -100, 1])),
    (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5, 2.0]), label_smoothing=0.1),
        (4, 3),
        torch.tensor([0, 2, 0, 1]),
    ),
    (nn.CrossEntropyLoss(), (2, 3, 2), torch.rand(2, 3, 2).softmax(1)),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])), (4, 3), torch.rand(4, 3)),
    (nn.MSELoss(), (4, 3), torch.rand(4, 3)),
]


def _columns(criterion: nn.Module, z: Tensor, target: Tensor, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return loss_root(criterion, z, target, samples=len(z), kind=kind, draws=2, generator=generator)  # type: ignore[arg-type]


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
    columns = loss_root(nn.CrossEntropyLoss(), z, target, samples=1, kind="mc", draws=1, generator=None)
    torch.testing.assert_close(columns.abs().float().amax(), torch.tensor(0.5 / 70_000**0.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("criterion", "shape", "target"), CASES)
def test_nothing_waits_for_a_value(criterion: nn.Module, shape: tuple[int, ...], target: Tensor, kind: str) -> None:
    # Fake tensors have no values: whoever asks for one gets an error.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        z = mode.from_tensor(torch.randn(shape))
        loss_root(criterion, z, mode.from_tensor(target), samples=len(z), kind=kind, draws=2, generator=None)  # type: ignore[arg-type]


def test_a_root_leaves_no_graph_and_no_gradient() -> None:
    criterion, z, target = nn.CrossEntropyLoss(), torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    for kind in KINDS:
        assert not _columns(criterion, 2 * z, target, kind).requires_grad
    assert z.grad is None
    assert z.requires_grad
