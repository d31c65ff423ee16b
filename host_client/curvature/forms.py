"""How the Jacobian rows of one layer are held: as factors or in full, whichever has fewer bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spu_link.operators import Conv2dRows, LinearRows, Rows
from spu_link.operators.base import BlockFactor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """The way from cotangents of a layer's output, shape (c, b, …), to its rows, c·b of them.

    Attributes:
        keep: what is kept of some of the c, shape (k, b, …); applied to them as they come.
        rows: the operator, from what has been kept of all.
    """

    keep: Callable[[Tensor], Tensor]
    rows: Callable[[Tensor], BlockFactor]


def linear_form(inputs: Tensor, *, bias: bool) -> Form:
    """Factors of a linear layer with inputs of shape (b, d_in)."""
    return Form(lambda cotangents: cotangents, lambda cotangents: LinearRows(inputs, cotangents, bias=bias))


def bias_form() -> Form:
    """Rows of a layer whose weight is frozen: the cotangents, summed over positions if there are any."""
    return Form(
        lambda cotangents: cotangents.flatten(3).sum(3) if cotangents.dim() > 3 else cotangents,
        lambda rows: Rows(rows.flatten(0, 1)),
    )


def conv2d_form(module: nn.Conv2d, inputs: Tensor, columns: int, outputs: int, *, bias: bool) -> Form:
    """Factors or explicit rows of a convolution.

    Args:
        module: the layer; its padding is zeros.
        inputs: shape (b, in, height, width).
        columns: c.
        outputs: elements of the layer's output, b·out·height·width.
        bias: whether the bias is trained.
    """
    inputs, geometry = _geometry(module, inputs)
    in_full = columns * len(inputs) * (module.weight.numel() + (module.out_channels if bias else 0))
    if in_full < inputs.numel() + columns * outputs:
        return _explicit(inputs, geometry, bias=bias)
    return Form(lambda cotangents: cotangents, lambda cotangents: Conv2dRows(inputs, cotangents, **geometry, bias=bias))


class _Geometry(TypedDict):
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


def _geometry(module: nn.Conv2d, inputs: Tensor) -> tuple[Tensor, _Geometry]:
    kernel, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    if module.padding == "same":
        height, width = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        padding = (height // 2, width // 2)
        if height % 2 or width % 2:
            # An odd total has one more row or column of zeros after the image than before it.
            inputs = F.pad(inputs, (0, width % 2, 0, height % 2))
    else:
        padding = (0, 0) if isinstance(module.padding, str) else _pair(module.padding)
    geometry = _Geometry(kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=module.groups)
    return inputs, geometry


def _pair(values: tuple[int, ...]) -> Pair:
    height, width = values
    return height, width


def _explicit(inputs: Tensor, geometry: _Geometry, *, bias: bool) -> Form:
    # Made as the cotangents come, so that those, which are larger, are never all in memory.
    patches = F.unfold(inputs, geometry["kernel"], geometry["dilation"], geometry["padding"], geometry["stride"])
    groups = geometry["groups"]
    patches = patches.unflatten(1, (groups, -1)).mT  # (b, groups, positions, weights of one channel)

    def rows(cotangents: Tensor) -> Tensor:
        delta = cotangents.flatten(3).unflatten(2, (groups, -1))  # (k, b, groups, channels of one, positions)
        weight = torch.stack([one @ patches for one in delta]).flatten(2)
        return torch.cat([weight, delta.sum(-1).flatten(2)], dim=2) if bias else weight

    return Form(rows, lambda rows: Rows(rows.flatten(0, 1)))
