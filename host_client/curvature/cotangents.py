"""Many cotangents through one recorded forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

PASS_ELEMENTS = 1 << 18
"""Elements (1 MiB in float32) that the largest layer output may take in one backward pass.

Wide layers go column by column, so that a pass stays in the processor's cache; narrow ones all together, so that the
engine's overhead is paid once.
"""


def backpropagate(
    logits: Tensor,
    columns: Tensor,
    outputs: Sequence[GradientEdge],
    keep: Sequence[Callable[[Tensor], Tensor]],
    *,
    widest: int,
) -> list[Tensor | None]:
    """What is kept of the cotangents of layer outputs, for c cotangents of the logits.

    The graph stays for the loss's own backward pass. Gradients with respect to parameters are not computed.

    Args:
        logits: shape (b, d), with its graph.
        columns: cotangents of the logits, shape (c, b, d).
        outputs: where in that graph the layers' outputs are, of shape (b, …).
        keep: for each output, what is kept of some of its cotangents: from shape (k, b, …), again (k, b, …).
        widest: elements of the largest of the outputs.

    Returns:
        For each output what was kept of all, shape (c, b, …), contiguous, or None where the logits do not depend on it.
    """
    step = max(1, PASS_ELEMENTS // widest)
    results: list[Tensor | None] = [None] * len(outputs)
    for start in range(0, len(columns), step):
        for i, cotangents in enumerate(_backward(logits, outputs, columns[start : start + step])):
            if cotangents is None:
                continue
            part = keep[i](cotangents)
            if step >= len(columns):
                results[i] = part.contiguous()
                continue
            whole = results[i]
            if whole is None:
                whole = results[i] = part.new_empty(len(columns), *part.shape[1:])
            whole[start : start + step] = part
    return results


def _backward(logits: Tensor, outputs: Sequence[GradientEdge], columns: Tensor) -> tuple[Tensor | None, ...]:
    if len(columns) > 1:
        return torch.autograd.grad(
            logits, outputs, columns, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    # One column needs no vmap, and any operation differentiates without it.
    parts = torch.autograd.grad(logits, outputs, columns[0], retain_graph=True, allow_unused=True)
    return tuple(None if part is None else part[None] for part in parts)
