"""Factors of several passes under each other: one program from micro-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from spu_link.errors import mismatch
from spu_link.operators.base import BlockFactor, Role
from spu_link.operators.layers import LayerRows
from spu_link.operators.rows import Rows
from spu_link.operators.zeros import ZeroRows

SAMPLES: Mapping[Role, int] = {"input": 0, "indices": 0, "cotangent": 1, "rows": 1}
"""Dimension of the samples of a tensor, rows being seen as (c, b, n)."""

SEQUENCE = 4
"""Number of dimensions of cotangents at the positions of a sequence: (c, b, p, features)."""


def stack(operators: Sequence[LayerRows], weights: Sequence[float], columns: Sequence[int]) -> LayerRows:
    """A = [√w₁ A₁; √w₂ A₂; …]: AᵀA is the weighted sum of the passes' curvatures.

    The rows come in the order (c, samples of all passes), as if one pass had seen all samples. Factors stay factors
    where all passes hold a layer in the same form; sequences of different lengths are filled up with zeros, which
    count for nothing, and so are passes with fewer rows a sample. Other layers become explicit rows.

    Args:
        operators: the factors of one pass each, with the same parameters layer by layer.
        weights: w ≥ 0 of each pass, for instance its fraction of the samples where the loss is a mean.
        columns: c of each pass, the number of its rows a sample.

    Raises:
        InvalidProgram: when the passes do not fit together.
    """
    for field, values in (("weights", weights), ("columns", columns)):
        if not operators or len(values) != len(operators):
            raise mismatch(field, f"{len(values)} for {len(operators)} operators", "one a pass, of at least one")
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise mismatch("weights", weight, "finite numbers, at least 0")
    for operator, c in zip(operators, columns, strict=True):
        if c < 1 or operator.shape[0] % c:
            raise mismatch("columns", c, f"the rows a sample of a pass that has {operator.shape[0]} rows")
        if operator.parameters != operators[0].parameters:
            raise mismatch("operators", "of different parameters", "the same parameters in every pass")
    roots = [math.sqrt(weight) for weight in weights]
    return LayerRows([_one_layer(passes, roots, columns) for passes in zip(*_alike(operators, columns), strict=True)])


def _alike(operators: Sequence[LayerRows], columns: Sequence[int]) -> list[list[BlockFactor]]:
    """The factors of each pass, cut at the same parameters: at those where no pass has a factor that goes on."""
    ends = [list(accumulate(layer.parameters for layer in operator.layers)) for operator in operators]
    inside: set[int] = set()
    for operator, of_pass in zip(operators, ends, strict=True):
        for layer, end in zip(operator.layers, of_pass, strict=True):
            if not isinstance(layer, ZeroRows):
                inside.update(range(end - layer.parameters + 1, end))
    cuts = sorted({end for of_pass in ends for end in of_pass} - inside)
    return [
        [_between(operator, of_pass, start, end, c) for start, end in pairwise([0, *cuts])]
        for operator, of_pass, c in zip(operators, ends, columns, strict=True)
    ]


def _between(operator: LayerRows, ends: Sequence[int], start: int, end: int, columns: int) -> BlockFactor:
    """The factor of some of the parameters: one block of the operator, zeros, or explicit rows of several blocks."""
    parts = [
        layer
        for layer, last in zip(operator.layers, ends, strict=True)
        if last > start and last - layer.parameters < end
    ]
    used = [layer for layer in parts if not isinstance(layer, ZeroRows)]
    if not used:
        samples = operator.shape[0] // columns
        return ZeroRows(columns, samples, end - start, dtype=operator.dtype, device=parts[0].device)
    if len(parts) == 1:
        return parts[0]
    return Rows(torch.cat([layer.to_rows() for layer in parts], 1))


def _one_layer(passes: Sequence[BlockFactor], roots: Sequence[float], columns: Sequence[int]) -> BlockFactor:
    """One layer's factors of all passes as one."""
    used = [factor for factor in passes if not isinstance(factor, ZeroRows)]
    if not used:
        zeros = passes[0]
        samples = sum(factor.shape[0] // c for factor, c in zip(passes, columns, strict=True))
        return ZeroRows(max(columns), samples, zeros.parameters, dtype=zeros.dtype, device=zeros.device)
    first = used[0]
    if any(_features(factor) != _features(first) for factor in used):
        rows = [factor if isinstance(factor, ZeroRows) else Rows(factor.to_rows()) for factor in passes]
        return _one_layer(rows, roots, columns)
    filled = [
        _zeros_like(first.tensors, factor.shape[0], c) if isinstance(factor, ZeroRows) else factor.tensors
        for factor, c in zip(passes, columns, strict=True)
    ]
    return first.like(*(_joined(role, [tensors[role] for tensors in filled], roots, columns) for role in first.tensors))


def _zeros_like(tensors: Mapping[Role, Tensor], rows: int, columns: int) -> dict[Role, Tensor]:
    """The tensors of a pass that does not use a layer, like those of one that does."""
    samples = rows // columns
    shapes = {
        role: (rows, *tensor.shape[1:])
        if role == "rows"
        else (columns, samples, *tensor.shape[2:])
        if SAMPLES[role]
        else (samples, *tensor.shape[1:])
        for role, tensor in tensors.items()
    }
    return {role: tensor.new_zeros(shapes[role]) for role, tensor in tensors.items()}


def _features(factor: BlockFactor) -> object:
    """Return what passes must agree in: form, dimensions, and all extents but samples and positions in a sequence."""
    tensors = factor.tensors
    sequence = "cotangent" in tensors and tensors["cotangent"].dim() == SEQUENCE
    extents = [(t.dim(), *t.shape[SAMPLES[role] + (2 if sequence else 1) :]) for role, t in tensors.items()]
    return factor.kind, factor.geometry, extents


def _joined(role: Role, tensors: Sequence[Tensor], roots: Sequence[float], columns: Sequence[int]) -> Tensor:
    """Tensors of one role, one after the other along the samples; the weights go into what is linear in the rows."""
    if role == "rows":
        tensors = [t.unflatten(0, (c, -1)) for t, c in zip(tensors, columns, strict=True)]
    samples = SAMPLES[role]
    if samples:
        tensors = [_filled(t, 0, max(columns)) for t in tensors]
    # Only sequences, in which the dimension behind the samples counts positions, may still differ there.
    longest = max((t.shape[samples + 1] for t in tensors if t.dim() > samples + 1), default=0)
    joined = torch.cat([_filled(t, samples + 1, longest) for t in tensors], samples)
    if role in ("cotangent", "rows"):
        for part, root in zip(joined.split([t.shape[samples] for t in tensors], samples), roots, strict=True):
            if root != 1.0:
                part.mul_(root)
    return joined.flatten(0, 1) if role == "rows" else joined


def _filled(tensor: Tensor, dimension: int, extent: int) -> Tensor:
    """The tensor with zeros behind its end in one dimension, if it has that one."""
    missing = extent - tensor.shape[dimension] if tensor.dim() > dimension else 0
    return F.pad(tensor, (0, 0) * (tensor.dim() - dimension - 1) + (0, missing)) if missing else tensor
