"""Many cotangents through one recorded forward pass."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

PASS_ELEMENTS = 1 << 18
"""Elements (1 MiB in float32) that the largest output may take in one backward pass.

Wide layers go column by column, so that a pass stays in the processor's cache; narrow ones all together, so that the
engine's overhead is paid once.
"""


class Columns(Protocol):
    """Cotangents of z of which some can be had at a time; a tensor of shape (c, *z.shape), for instance."""

    def __len__(self) -> int:
        """The number c of cotangents."""
        ...

    def __getitem__(self, some: slice, /) -> Tensor:
        """Some of them, shape (k, *z.shape)."""
        ...


@dataclass(frozen=True)
class Taker:
    """Something that keeps a part of the cotangents that arrive.

    Attributes:
        outputs: the numbers of the outputs whose cotangents it takes.
        keep: from those, each of shape (k, *output), to what is kept, (k, …).
    """

    outputs: Sequence[int]
    keep: Callable[[Sequence[Tensor]], Tensor]


def backpropagate(
    z: Tensor,
    columns: Columns,
    edges: Sequence[GradientEdge],
    shapes: Sequence[torch.Size],
    takers: Sequence[Taker],
) -> list[Tensor]:
    """What is kept of the cotangents of outputs, for c cotangents of z.

    The graph stays for the loss's own backward pass. Gradients with respect to parameters are not computed.

    Args:
        z: with its graph.
        columns: c cotangents of z.
        edges: where in that graph the outputs are.
        shapes: of the outputs.
        takers: what is kept of some of the columns, as they come.

    Returns:
        For each taker what was kept of all columns, shape (c, …), contiguous.
    """
    widest = max((shape.numel() for shape in shapes), default=1)
    step = max(1, PASS_ELEMENTS // max(1, widest))
    results: list[Tensor] = []
    for start in range(0, len(columns), step):
        some = columns[start : start + step]
        cotangents = [
            z.new_zeros(len(some), *shape) if one is None else one
            for one, shape in zip(gradients(z, edges, some), shapes, strict=True)
        ]
        for i, taker in enumerate(takers):
            part = taker.keep([cotangents[o] for o in taker.outputs])
            if step >= len(columns):
                results.append(part.contiguous())
                continue
            if not start:
                results.append(part.new_empty(len(columns), *part.shape[1:]))
            results[i][start : start + step] = part
    return results


def gradients(
    z: Tensor, inputs: Sequence[Tensor] | Sequence[GradientEdge], cotangents: Tensor
) -> Sequence[Tensor | None]:
    """Gradients of `z` for several cotangents (k, *z.shape): for each input shape (k, *input), or None if unused."""
    if not inputs:
        return ()
    if len(cotangents) > 1:
        with warnings.catch_warnings():
            # Where an operation has no batching rule, torch goes through the columns one by one, as it would without.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            # What vmap cannot follow, such as numpy or a kernel in a function of one's own, may do without it below.
            with contextlib.suppress(RuntimeError):
                return torch.autograd.grad(
                    z, inputs, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
    # Any operation differentiates one column.
    columns = [torch.autograd.grad(z, inputs, one, retain_graph=True, allow_unused=True) for one in cotangents]
    if len(columns) == 1:
        return tuple(None if part is None else part[None] for part in columns[0])
    return tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*columns, strict=True))
