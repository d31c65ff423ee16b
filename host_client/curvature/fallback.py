"""Jacobian rows for parameters that some function without a rule takes: right for anything, at a higher cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from host_client.curvature.cotangents import gradients

CHUNK_BYTES = 1 << 28
"""Most bytes (256 MiB) that the cotangents of the widest output, and the rows, take in one pass."""


def rows_by_autograd(
    z: Tensor, columns: Tensor, parameters: Sequence[Tensor], *, samples: int, widest: int
) -> list[Tensor]:
    """Rows of parameters by one backward pass through the whole graph for each column and each sample, in chunks.

    Args:
        z: with its graph; samples lead, or are flattened with their positions.
        columns: cotangents of z, shape (c, *z.shape).
        parameters: of which the rows are.
        samples: b.
        widest: elements of the largest output in the graph.

    Returns:
        For each parameter its rows, shape (c·b, elements), in its dtype.
    """
    c, itemsize = len(columns), z.element_size()
    positions = len(z) // samples
    whole = columns.reshape(c, samples, positions, *z.shape[1:])
    rows = [p.new_zeros(c * samples, p.numel()) for p in parameters]
    each = itemsize * max(widest, sum(p.numel() for p in parameters))
    chunk = max(1, CHUNK_BYTES // each)
    for start in range(0, c * samples, chunk):
        number = torch.arange(start, min(start + chunk, c * samples), device=z.device)
        column, sample = number // samples, number % samples
        cotangents = columns.new_zeros(len(number), samples, positions, *z.shape[1:])
        cotangents[torch.arange(len(number), device=z.device), sample] = whole[column, sample]
        for kept, gradient in zip(rows, gradients(z, parameters, cotangents.flatten(1, 2)), strict=True):
            if gradient is not None:
                kept[start : start + chunk] = gradient.reshape(len(number), -1)
    return rows
