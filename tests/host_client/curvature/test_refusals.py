"""Whatever no curvature is known for is refused, by name and with a way out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture, UnsupportedCriterion, UnsupportedLayer

TARGETS = torch.tensor([0, 1, 2, 0])


def test_nothing_trained() -> None:
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        Capture(nn.Linear(2, 2).requires_grad_(False), nn.CrossEntropyLoss())


class Function(nn.Module):
    """A network whose forward pass is given as a function of its two layers and the input."""

    def __init__(self, function: Callable[[nn.Module, nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of layers and input."""
        return self.function(self.body, self.head, x)


def _without_gradients(body: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = body(x)
    return head(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "path", "message"),
    [
        (
            lambda body, head, x: head(x),
            "body",
            r"layer 'body' .*'weight' .*not influence.*requires_grad_\(False\)",
        ),
        (lambda body, head, x: (body(x), head(x))[1], "body", r"layer 'body' .*'weight' .*does not influence"),
        (_without_gradients, "body", r"layer 'body' .*'weight' .*without gradients"),
        (lambda body, head, x: head(body(x) - body(x).mean(0)), "body", r"layer 'body' \(linear\) .*samples mix"),
        (lambda body, head, x: head(body(x).roll(1, 0)), "body", r"layer 'body' \(linear\) .*samples mix"),
        (lambda body, head, x: head(body(x))[:3], "", r"gave out 3 samples.*|the criterion was given.*"),
    ],
)
def test_uses_of_a_layer(function: Callable[[nn.Module, nn.Module, Tensor], Tensor], path: str, message: str) -> None:
    model = Function(function)
    capture = Capture(model, nn.CrossEntropyLoss())
    outputs = model(torch.randn(4, 5))
    if len(outputs) == 3:
        outputs = torch.cat([outputs, outputs[:1]])
    with pytest.raises(UnsupportedLayer, match=message) as refused:
        capture.criterion(outputs, TARGETS)
    assert refused.value.path == path
    with pytest.raises(RuntimeError, match="no loss of it"):
        capture.operator  # noqa: B018


def test_frozen_after_the_capture() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
    capture = Capture(model, nn.CrossEntropyLoss())
    model[0].requires_grad_(False)
    with pytest.raises(UnsupportedLayer, match=r"layer '0' .* frozen since the optimizer was made"):
        capture.criterion(model(torch.randn(4, 5)), TARGETS)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}], ids=["training", "without statistics"])
def test_batch_norm_that_mixes_samples(options: dict[str, bool], affine: bool) -> None:
    norm = nn.BatchNorm2d(2, affine=affine, **options).requires_grad_(False)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(72, 3))
    capture = Capture(model, nn.CrossEntropyLoss())
    if options:
        norm.eval()
    with pytest.raises(UnsupportedLayer, match=r"layer '0' \(BatchNorm2d\) takes its .*eval mode .*with GroupNorm"):
        model(torch.randn(4, 2, 6, 6))
    capture.close()


@pytest.mark.parametrize(
    ("criterion", "field"),
    [(nn.NLLLoss(), ""), (nn.CrossEntropyLoss(reduction="none"), "reduction")],
    ids=str,
)
def test_other_criteria(criterion: nn.Module, field: str) -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(UnsupportedCriterion) as no:
        Capture(model, criterion)
    assert no.value.field == field
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
