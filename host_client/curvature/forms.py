"""The forms in which the Jacobian rows of a parameter are held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from host_client.curvature.claims import Claim
from host_client.curvature.cotangents import Taker
from host_client.curvature.rules import ToRows
from host_client.curvature.rules.convolution import Convolution
from host_client.curvature.rules.embedding import Embedding
from host_client.curvature.rules.linear import Product
from spu_link.operators import Conv2dRows, EmbeddingRows, LinearRows, Rows
from spu_link.operators.base import BlockFactor


@dataclass(frozen=True)
class Block:
    """The way from cotangents to the rows of one parameter, or of a weight and its bias.

    Attributes:
        parameter: index of the (first) parameter.
        parameters: number of its columns.
        taker: what is kept of the cotangents of which uses.
        rows: the factor, from what has been kept of all columns, shape (c, b, …).
        fixed: elements held whatever the number of columns.
        per_column: elements held for each column.
    """

    parameter: int
    parameters: int
    taker: Taker
    rows: Callable[[Tensor], BlockFactor]
    fixed: int
    per_column: int


@dataclass(frozen=True)
class Batch:
    """What all blocks of a pass have in common.

    Attributes:
        columns: c.
        samples: b.
        dtype: of the factors.
    """

    columns: int
    samples: int
    dtype: torch.dtype


def linear(claims: Sequence[Claim], batch: Batch, *, bias: bool) -> Block:
    """Inputs and cotangents of the uses of a matrix, or of a stretch of its rows, side by side as positions."""
    factors, deltas = [], []
    for claim in claims:
        operation = claim.use.operation
        assert isinstance(operation, Product)
        factors.append(operation.factors(claim.layout))
        deltas.append(operation.cotangents(claim.layout))
    inputs = (factors[0] if len(factors) == 1 else torch.cat([_positions(a, 2) for a in factors], 1)).to(batch.dtype)

    def keep(cotangents: Sequence[Tensor]) -> Tensor:
        parts = [delta(one) for delta, one in zip(deltas, cotangents, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat([_positions(d, 3) for d in parts], 2)).to(batch.dtype)

    source = claims[0].source
    return Block(
        source.parameter,
        source.numel + (claims[0].use.shape[-1] if bias else 0),
        Taker([claim.number for claim in claims], keep),
        lambda kept: LinearRows(inputs, kept, bias=bias),
        inputs.numel(),
        sum(claim.use.shape.numel() for claim in claims),
    )


def linear_swapped(claim: Claim, batch: Batch) -> Block:
    """For one column, a weight of shape (d_in, d_out): inputs and cotangents change places."""
    operation = claim.use.operation
    assert isinstance(operation, Product)
    inputs = operation.factors(claim.layout).to(batch.dtype)
    delta = operation.cotangents(claim.layout)
    return Block(
        claim.source.parameter,
        claim.source.numel,
        Taker([claim.number], lambda cotangents: delta(cotangents[0]).to(batch.dtype)),
        lambda kept: LinearRows(kept[0], inputs[None], bias=False),
        inputs.numel(),
        claim.use.shape.numel(),
    )


def _positions(tensor: Tensor, dims: int) -> Tensor:
    return tensor.unsqueeze(-2) if tensor.dim() == dims else tensor


def convolution(claim: Claim, operation: Convolution, batch: Batch, *, bias: bool) -> Block:
    """Inputs and cotangents of the one use of a kernel in one or two dimensions."""
    geometry, inputs = operation.geometry, operation.inputs.to(batch.dtype)
    delta = operation.cotangents(claim.layout)
    line = len(geometry.kernel) == 1  # held as an image one pixel high
    inputs = inputs.unsqueeze(2) if line else inputs

    def pair(values: tuple[int, ...], first: int) -> tuple[int, int]:
        return (first, values[0]) if line else (values[0], values[1])

    def keep(cotangents: Sequence[Tensor]) -> Tensor:
        kept = delta(cotangents[0]).to(batch.dtype)
        return kept.unsqueeze(3) if line else kept

    def rows(kept: Tensor) -> BlockFactor:
        return Conv2dRows(
            inputs,
            kept,
            kernel=pair(geometry.kernel, 1),
            stride=pair(geometry.stride, 1),
            padding=pair(geometry.padding, 0),
            dilation=pair(geometry.dilation, 1),
            groups=geometry.groups,
            bias=bias,
        )

    parameters = claim.source.numel + (claim.use.shape[1] if bias else 0)
    taker = Taker([claim.number], keep)
    return Block(claim.source.parameter, parameters, taker, rows, inputs.numel(), claim.use.shape.numel())


def embedding(claims: Sequence[Claim], batch: Batch) -> Block:
    """Indices and cotangents of the uses of a table, side by side as positions."""
    looked_up, deltas = [], []
    for claim in claims:
        operation = claim.use.operation
        assert isinstance(operation, Embedding)
        looked_up.append(operation.looked_up(claim.layout))
        deltas.append(operation.cotangents(claim.layout, batch.dtype))
        embeddings, d = operation.table
    indices = torch.cat(looked_up, 1).contiguous()

    def keep(cotangents: Sequence[Tensor]) -> Tensor:
        parts = [delta(one.to(batch.dtype)) for delta, one in zip(deltas, cotangents, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    return Block(
        claims[0].source.parameter,
        embeddings * d,
        Taker([claim.number for claim in claims], keep),
        lambda kept: EmbeddingRows(indices, kept, embeddings=embeddings),
        indices.numel() * (indices.element_size() // batch.dtype.itemsize or 1),
        indices.numel() * d,
    )


def explicit(parameters: Sequence[Sequence[Claim]], sizes: Sequence[int], batch: Batch) -> Block:
    """Rows in full, summed over all uses."""
    numbers = sorted({claim.number for claims in parameters for claim in claims})
    ways: list[list[tuple[int, ToRows]]] | None = None

    def keep(cotangents: Sequence[Tensor]) -> Tensor:
        nonlocal ways
        if ways is None:  # what a way is prepared with may be large, and is only made when it is taken
            ways = [
                [(numbers.index(claim.number), _way(claim, size, batch)) for claim in claims]
                for claims, size in zip(parameters, sizes, strict=False)
            ]
        parts = []
        for claims in ways:
            rows = [way(cotangents[i]) for i, way in claims]
            parts.append(rows[0] if len(rows) == 1 else torch.stack(rows).sum(0))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    columns = sum(size for _, size in zip(parameters, sizes, strict=False))
    return Block(
        parameters[0][0].source.parameter,
        columns,
        Taker(numbers, keep),
        lambda kept: Rows(kept.flatten(0, 1)),
        0,
        batch.samples * columns,
    )


def _way(claim: Claim, size: int, batch: Batch) -> ToRows:
    """From cotangents of one use to rows of the whole parameter."""
    rows = claim.use.operation.rows(claim.role, claim.layout, batch.dtype)
    if claim.whole(size):
        return lambda cotangents: rows(cotangents.to(batch.dtype))

    def placed(cotangents: Tensor) -> Tensor:
        part = rows(cotangents.to(batch.dtype))
        whole = part.new_zeros(*part.shape[:2], size)
        return whole.index_add_(2, claim.source.positions(part.device), part)

    return placed
