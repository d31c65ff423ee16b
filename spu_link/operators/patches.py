"""Patches of an image that a convolution's kernel meets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def patches_of(
    images: Tensor,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    places: Sequence[int] | None = None,
) -> Tensor:
    """The patches of images that a kernel meets, one after the other; as `torch.nn.functional.unfold`, but faster.

    Args:
        images: shape (n, channels, *space).
        kernel, stride, padding, dilation: one number for each dimension of space; padding is zeros.
        places: how many along each dimension of space, if not all.

    Returns:
        Shape (n, channels · kernel, places).
    """
    if any(padding):
        images = F.pad(images, [p for pad in reversed(padding) for p in (pad, pad)])
    n, channels, *space = images.shape
    view = images
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        view = view.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
        if places is not None:
            view = view.narrow(2 + i, 0, places[i])
    # A view of shape (n, channels, *places, *kernel); copied once, along the places.
    dims = len(space)
    view = view.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return view.reshape(n, channels * math.prod(kernel), -1)
