"""Whatever no exact curvature is known for is refused, by name and with a way out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture, UnsupportedCriterion, UnsupportedLayer

IMAGES = torch.randn(4, 2, 6, 6)


class LowRank(nn.Linear):
    """A subclass that computes something else."""


@pytest.mark.parametrize(
    ("layer", "way_out"),
    [
        (nn.BatchNorm2d(2), r"\(BatchNorm2d\).*only Linear and Conv2d.*requires_grad_\(False\)"),
        (nn.LayerNorm(6), r"\(LayerNorm\).*requires_grad_\(False\)"),
        (nn.Embedding(5, 3), r"\(Embedding\).*requires_grad_\(False\)"),
        (nn.PReLU(), r"\(PReLU\).*requires_grad_\(False\)"),
        (nn.Conv1d(2, 2, 1), r"\(Conv1d\).*requires_grad_\(False\)"),
        (LowRank(6, 6), r"\(LowRank\).*requires_grad_\(False\)"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), r"\(Conv2d\).*'circular'.*use 'zeros'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_layers_with_trained_parameters(layer: nn.Module, way_out: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU(), layer), nn.Flatten(), nn.Linear(72, 3))
    with pytest.raises(UnsupportedLayer, match=r"layer '0\.1' " + way_out) as refused:
        Capture(model, nn.CrossEntropyLoss())
    assert refused.value.path == "0.1"
    assert isinstance(refused.value, ValueError)


def test_parameters_of_the_model_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(UnsupportedLayer, match=r"the model \(Sequential\) has trained parameters"):
        Capture(model, nn.CrossEntropyLoss())


def test_shared_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(UnsupportedLayer, match="layer '2' shares a parameter with layer '0'"):
        Capture(model, nn.CrossEntropyLoss())


def test_nothing_trained() -> None:
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        Capture(nn.Linear(2, 2).requires_grad_(False), nn.CrossEntropyLoss())


class Function(nn.Module):
    """A network whose forward pass is given as a function of its two layers and the input."""

    def __init__(self, function: Callable[[nn.Module, nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 3)
        self.function = function

    def forward(self, x: Tensor) -> object:
        """The function of layers and input."""
        return self.function(self.body, self.head, x)


def _without_gradients(body: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = body(x)
    return head(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda body, head, x: head(body(body(x))), r"layer 'body' was called twice.*layer of its own"),
        (lambda body, head, x: head(x), r"layer 'body' was not called.*requires_grad_\(False\)"),
        (lambda body, head, x: (body(x), head(x))[1], r"layer 'body' does not influence.*requires_grad_\(False\)"),
        (
            lambda body, head, x: head(body(x[:, None])),
            r"layer 'body' \(Linear\) got.*\(4, 1, 5\).*\(batch, features\)",
        ),
        (lambda body, head, x: head(body(x.repeat(2, 1)).view(4, 2, 5).sum(1)), r"layer 'body' was given 8 rows for 4"),
        (_without_gradients, r"layer 'body' was called without gradients"),
        (lambda body, head, x: (head(body(x)),), r"the model returns tuple; it must return the logits"),
        (lambda body, head, x: head(body(x))[:, :, None], r"the model returns logits of shape \(4, 3, 1\)"),
        (lambda body, head, x: head(body(x))[:, :1], r"the model returns logits of shape \(4, 1\).*two classes"),
        (lambda body, head, x: head(body(x)).detach(), r"the model returns logits that are cut off"),
    ],
)
def test_other_uses_of_a_layer(function: Callable[[nn.Module, nn.Module, Tensor], object], message: str) -> None:
    model = Function(function)
    capture = Capture(model, nn.CrossEntropyLoss())
    with pytest.raises(UnsupportedLayer, match=message):
        model(torch.randn(4, 5))
    with pytest.raises(RuntimeError, match="no training forward pass"):
        capture.operator  # noqa: B018


def test_images_without_a_batch() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 6), nn.Flatten(1), nn.Flatten(0), nn.Unflatten(0, (1, 3)))
    capture = Capture(model, nn.CrossEntropyLoss())
    with pytest.raises(
        UnsupportedLayer, match=r"layer '0' \(Conv2d\).*\(2, 6, 6\).*\(batch, channels, height, width\)"
    ):
        model(IMAGES[0])
    capture.close()


def test_frozen_after_the_capture() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
    capture = Capture(model, nn.CrossEntropyLoss())
    model[0].requires_grad_(False)
    with pytest.raises(UnsupportedLayer, match=r"layer '0' .* frozen since the optimizer was made"):
        model(torch.randn(4, 5))
    capture.close()


@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}], ids=["training", "without statistics"])
def test_batch_norm_that_mixes_samples(options: dict[str, bool]) -> None:
    norm = nn.BatchNorm2d(2, affine=False, **options)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(72, 3))
    capture = Capture(model, nn.CrossEntropyLoss())
    if options:
        norm.eval()
    with pytest.raises(UnsupportedLayer, match=r"layer '0' \(BatchNorm2d\) takes its statistics from the batch"):
        model(IMAGES)
    capture.close()


@pytest.mark.parametrize(
    ("criterion", "field"),
    [
        (nn.MSELoss(), ""),
        (nn.NLLLoss(), ""),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "weight"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "label_smoothing"),
        (nn.CrossEntropyLoss(ignore_index=0), "ignore_index"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction"),
    ],
    ids=str,
)
def test_other_criteria(criterion: nn.Module, field: str) -> None:
    with pytest.raises(UnsupportedCriterion, match=f"criterion.{field}" if field else "only nn.CrossEntropyLoss") as no:
        Capture(nn.Linear(5, 3), criterion)
    assert no.value.field == field


def test_targets_that_the_criterion_ignores() -> None:
    model, criterion = nn.Linear(5, 3), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    with pytest.raises(UnsupportedCriterion, match=r"criterion\.ignore_index \(-100\) is among the targets"):
        criterion(model(torch.randn(4, 5)), target=torch.tensor([0, -100, 1, 2]))
    with torch.no_grad():
        criterion(model(torch.randn(4, 5)), torch.tensor([0, -100, 1, 2]))
    criterion(model(torch.randn(4, 5)), torch.full((4, 3), 1 / 3)).backward()
    capture.operator_of_gradients()


def test_a_refused_model_has_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    with pytest.raises(UnsupportedLayer):
        Capture(model, nn.CrossEntropyLoss())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
