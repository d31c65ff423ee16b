"""Factors of several passes under each other: one program from micro-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spu_link.operators.base import BlockFactor, Role, mismatch
from spu_link.operators.layers import LayerRows
from spu_link.operators.rows import Rows
from tngd.spu.v1 import spu_pb2 as pb

SAMPLES: Mapping[Role, int] = {pb.ROLE_INPUT: 0, pb.ROLE_INDICES: 0, pb.ROLE_COTANGENT: 1, pb.ROLE_ROWS: 1}
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
        weights: w ≥ 0 of each pass, for instance its share of the samples where the loss is a mean.
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
        if [layer.parameters for layer in operator.layers] != [layer.parameters for layer in operators[0].layers]:
            raise mismatch("operators", "of different parameters", "the same layers in every pass")
    roots = [math.sqrt(weight) for weight in weights]
    return LayerRows(
        [_one_layer(passes, roots, columns) for passes in zip(*(o.layers for o in operators), strict=True)]
    )


def _one_layer(passes: Sequence[BlockFactor], roots: Sequence[float], columns: Sequence[int]) -> BlockFactor:
    """One layer's factors of all passes as one."""
    parts = [factor.wire()[0] for factor in passes]
    block, tensors = parts[0]
    if any(other != block or _features(one) != _features(tensors) for other, one in parts):
        return _one_layer([Rows(factor.to_rows()) for factor in passes], roots, columns)
    joined = {role: _joined(role, [one[role] for _, one in parts], roots, columns) for role in tensors}
    return type(passes[0]).from_wire(block, joined)


def _features(tensors: Mapping[Role, Tensor]) -> list[tuple[int, ...]]:
    """What the passes must agree in: number of dimensions, and all extents but samples and positions in a sequence."""
    sequence = pb.ROLE_COTANGENT in tensors and tensors[pb.ROLE_COTANGENT].dim() == SEQUENCE
    return [(t.dim(), *t.shape[SAMPLES[role] + (2 if sequence else 1) :]) for role, t in tensors.items()]


def _joined(role: Role, tensors: Sequence[Tensor], roots: Sequence[float], columns: Sequence[int]) -> Tensor:
    """Tensors of one role, one after the other along the samples; the weights go into what is linear in the rows."""
    if role == pb.ROLE_ROWS:
        tensors = [t.unflatten(0, (c, -1)) for t, c in zip(tensors, columns, strict=True)]
    samples = SAMPLES[role]
    if samples:
        tensors = [_filled(t, 0, max(columns)) for t in tensors]
    # Only sequences, in which the dimension behind the samples counts positions, may still differ there.
    longest = max((t.shape[samples + 1] for t in tensors if t.dim() > samples + 1), default=0)
    joined = torch.cat([_filled(t, samples + 1, longest) for t in tensors], samples)
    if role in (pb.ROLE_COTANGENT, pb.ROLE_ROWS):
        for part, root in zip(joined.split([t.shape[samples] for t in tensors], samples), roots, strict=True):
            if root != 1.0:
                part.mul_(root)
    return joined.flatten(0, 1) if role == pb.ROLE_ROWS else joined


def _filled(tensor: Tensor, dimension: int, extent: int) -> Tensor:
    """The tensor with zeros behind its end in one dimension, if it has that one."""
    missing = extent - tensor.shape[dimension] if tensor.dim() > dimension else 0
    return F.pad(tensor, (0, 0) * (tensor.dim() - dimension - 1) + (0, missing)) if missing else tensor
