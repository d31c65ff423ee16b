"""Convolutions: one case for each option."""

from __future__ import annotations

import torch
from torch import nn

from tests.cases.case import Case
from tests.cases.shared import IMAGE, convolutional
from tests.networks import (
    Residual,
)


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


CONVOLUTION = [
    Case("convolution", convolutional(), IMAGE),
    Case("convolution without bias", convolutional(bias=False), IMAGE),
    Case("convolution, explicit rows", convolutional(out_channels=2, kernel_size=1), IMAGE),
    Case("stride", convolutional(stride=(2, 3)), IMAGE),
    Case("padding", convolutional(padding=(2, 1)), IMAGE),
    Case("padding same", convolutional(padding="same"), IMAGE),
    Case("padding same, even extent", convolutional(padding="same", kernel_size=(2, 4), dilation=(1, 3)), IMAGE),
    Case("padding valid", convolutional(padding="valid"), IMAGE),
    Case("padding circular", convolutional(padding=(2, 1), padding_mode="circular"), IMAGE),
    Case("padding reflect", convolutional(padding="same", padding_mode="reflect"), IMAGE),
    Case("dilation", convolutional(dilation=(2, 1), kernel_size=(3, 2)), IMAGE),
    Case("groups", convolutional(groups=2), IMAGE),
    Case("depthwise", convolutional(groups=4, out_channels=8), IMAGE),
    Case("everything", convolutional(groups=2, stride=2, padding=2, dilation=2, kernel_size=(3, 2)), IMAGE),
    Case("pooling, residual, in place", _pooled, IMAGE),
    Case("convolution in 1d", convolutional(nn.Conv1d, (4, 9), stride=2, padding=1, groups=2), (4, 9)),
    Case(
        "convolution in 1d, replicated", convolutional(nn.Conv1d, (4, 9), padding=2, padding_mode="replicate"), (4, 9)
    ),
    Case(
        "convolution in 3d",
        convolutional(nn.Conv3d, (2, 2, 3, 4), kernel_size=(1, 2, 3), padding=(0, 1, 1)),
        (2, 2, 3, 4),
    ),
    Case(
        "convolution in 3d, strided, no bias",
        convolutional(nn.Conv3d, (2, 3, 4, 5), kernel_size=2, stride=(1, 2, 2), bias=False),
        (2, 3, 4, 5),
    ),
    Case("transposed in 1d", convolutional(nn.ConvTranspose1d, (4, 5), stride=2, padding=1), (4, 5)),
    Case(
        "transposed in 2d",
        convolutional(
            nn.ConvTranspose2d, (4, 3, 2), stride=(2, 1), padding=1, output_padding=(1, 0), dilation=(1, 2), groups=2
        ),
        (4, 3, 2),
    ),
    Case("transposed without bias", convolutional(nn.ConvTranspose2d, (4, 3, 2), bias=False), (4, 3, 2)),
    Case("transposed in 3d", convolutional(nn.ConvTranspose3d, (2, 2, 1, 3), kernel_size=2), (2, 2, 1, 3)),
    Case(
        "channels last in memory",
        lambda: convolutional()().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        IMAGE,
        call=lambda model, x: model(x.contiguous(memory_format=torch.channels_last)),
    ),
    Case(
        "convolution twice",
        lambda: nn.Sequential(
            *(layer for layer in [nn.Conv2d(4, 4, 3, padding=1)] for _ in range(2)), nn.Flatten(), nn.Linear(168, 3)
        ),
        IMAGE,
    ),
]
