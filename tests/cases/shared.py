"""Parts of the cases of several groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.networks import Function

IMAGE = (4, 7, 6)
"""Channels, height and width: no two alike."""

TOKENS = (5, 4)
"""Tokens and features."""


def convolutional(kind: type[nn.Module] = nn.Conv2d, image: Sequence[int] = IMAGE, **options: Any) -> Any:
    """A convolution with these options before a linear layer."""
    options = {"in_channels": image[0], "out_channels": 6, "kernel_size": 3, **options}

    def build() -> nn.Module:
        convolution = kind(**options)
        features = convolution(torch.zeros(1, *image)).numel()
        return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))

    return build


def mlp() -> nn.Module:
    """Three linear layers, one without a bias."""
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 3))


def made_of(
    **parts: Callable[[], nn.Module | nn.Parameter],
) -> Callable[[Callable[..., Tensor]], Callable[[], nn.Module]]:
    """A function of these parts, given next, as a network: ``made_of(body=…)(lambda model, x: model.body(x))``."""
    return lambda forward: lambda: Function(forward, **{name: make() for name, make in parts.items()})
