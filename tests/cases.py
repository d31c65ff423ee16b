"""Models, losses and data that every test of the curvature runs over: one case for each way a layer can be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A small classification problem.

    Attributes:
        name: what is special about it.
        build: makes the network.
        sample: shape of one input.
        classes: d.
        batch: b.
        reduction: of the cross-entropy.
        frozen: paths of parameters that are not trained.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: Sequence[int]
    classes: int = 3
    batch: int = 4
    reduction: str = "mean"
    frozen: Sequence[str] = ()

    def problem(self, dtype: torch.dtype = torch.float64) -> Problem:
        """The case with values, the same each time."""
        # The state of the global generator is the test's own business.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().to(dtype)
            inputs = torch.randn(self.batch, *self.sample, dtype=dtype)
            targets = torch.randint(self.classes, (self.batch,))
        for path in self.frozen:
            model.get_parameter(path).requires_grad_(False)
        return Problem(model, nn.CrossEntropyLoss(reduction=self.reduction), inputs, targets)


@dataclass(frozen=True)
class Problem:
    """A network in training mode, its loss, and a batch."""

    model: nn.Module
    criterion: nn.CrossEntropyLoss
    inputs: Tensor
    targets: Tensor

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """The input and its change."""
        return x + self.body(x)


class TwoHeads(nn.Module):
    """Logits as the sum of two branches, one of which is declared first and called last."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(6, 3)
        self.early = nn.Linear(5, 6)
        self.skip = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Both branches, called with a keyword."""
        return self.skip(input=x) + self.late(torch.tanh(self.early(input=x)))


IMAGE = (4, 7, 6)
"""Channels, height and width: no two alike."""


def _convolutional(**options: Any) -> Callable[[], nn.Module]:
    """A convolution with these options before a linear layer."""
    options = {"in_channels": IMAGE[0], "out_channels": 6, "kernel_size": 3, **options}

    def build() -> nn.Module:
        convolution = nn.Conv2d(**options)
        features = convolution(torch.zeros(1, *IMAGE)).numel()
        return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))

    return build


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 3))


def _pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 3, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


def _normalised() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(60, 3))
    model[1].eval().requires_grad_(False)
    return model


CASES = [
    Case("linear layer as the model", lambda: nn.Linear(5, 3), (5,)),
    Case("linear without bias", lambda: nn.Linear(5, 3, bias=False), (5,)),
    Case("mlp", _mlp, (5,)),
    Case("sum over the batch", _mlp, (5,), reduction="sum"),
    Case("two classes", lambda: nn.Linear(5, 2), (5,), classes=2),
    Case("batch of one", _mlp, (5,), batch=1),
    Case("one feature", lambda: nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 3)), (1,)),
    Case("branches", TwoHeads, (5,)),
    Case("convolution", _convolutional(), IMAGE),
    Case("convolution without bias", _convolutional(bias=False), IMAGE),
    Case("convolution, explicit rows", _convolutional(out_channels=2, kernel_size=1), IMAGE),
    Case("stride", _convolutional(stride=(2, 3)), IMAGE),
    Case("padding", _convolutional(padding=(2, 1)), IMAGE),
    Case("padding same", _convolutional(padding="same"), IMAGE),
    Case("padding same, even extent", _convolutional(padding="same", kernel_size=(2, 4), dilation=(1, 3)), IMAGE),
    Case("padding valid", _convolutional(padding="valid"), IMAGE),
    Case("dilation", _convolutional(dilation=(2, 1), kernel_size=(3, 2)), IMAGE),
    Case("groups", _convolutional(groups=2), IMAGE),
    Case("depthwise", _convolutional(groups=4, out_channels=8), IMAGE),
    Case("everything", _convolutional(groups=2, stride=2, padding=2, dilation=2, kernel_size=(3, 2)), IMAGE),
    Case("pooling, residual, in place", _pooled, IMAGE),
    Case("frozen batch norm", _normalised, IMAGE),
    Case("frozen layer", _mlp, (5,), frozen=("0.weight", "0.bias")),
    Case("frozen layer in between", _mlp, (5,), frozen=("2.weight",)),
    Case("frozen linear weight", _mlp, (5,), frozen=("0.weight",)),
    Case("frozen bias", _mlp, (5,), frozen=("4.bias",)),
    Case("frozen convolution weight", _convolutional(), IMAGE, frozen=("0.weight",)),
]
