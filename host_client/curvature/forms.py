"""The forms in which the Jacobian rows of a parameter are held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from host_client.curvature.axis import Axis
from host_client.curvature.graph import Call
from host_client.curvature.plan import Claim
from host_client.curvature.rules import ToRows
from host_client.curvature.rules.convolution import Convolution, images_of
from host_client.curvature.rules.embedding import TableLookup
from host_client.curvature.rules.products import Product
from spu_link.operators import Conv2dRows, EmbeddingRows, LinearRows, Rows
from spu_link.operators.base import BlockFactor


@dataclass(frozen=True)
class BlockForm:
    """The way from cotangents to the rows of one parameter, or of a weight and its bias.

    Attributes:
        parameter: index of the (first) parameter.
        parameters: number of its columns.
        calls: the calls of whose outputs' cotangents something is kept.
        keep: from those, each of shape (k, *output), to what is kept, (k, b, …).
        rows: the factor, from what has been kept of all columns, shape (c, b, …).
        fixed: elements held whatever the number of columns.
        per_column: elements held for each column.
    """

    parameter: int
    parameters: int
    calls: Sequence[Call]
    keep: Callable[[Sequence[Tensor]], Tensor]
    rows: Callable[[Tensor], BlockFactor]
    fixed: int
    per_column: int


@dataclass(frozen=True)
class Batch:
    """The properties that all blocks of a pass have in common.

    Attributes:
        columns: c.
        samples: b.
        dtype: of the factors.
    """

    columns: int
    samples: int
    dtype: torch.dtype


def linear(claims: Sequence[Claim], batch: Batch, *, bias: bool) -> BlockForm:
    """Inputs and cotangents of the uses of a matrix, or of a stretch of its rows, next to each other as positions."""
    operations = [claim.operation for claim in claims]
    axes = [claim.axis for claim in claims]
    products = [operation for operation in operations if isinstance(operation, Product)]
    inputs = side_by_side([p.factors(axis) for p, axis in zip(products, axes, strict=True)], axes, batch.samples, 0)
    inputs = _without_positions(inputs, 1).to(batch.dtype)
    deltas = [p.cotangents(axis) for p, axis in zip(products, axes, strict=True)]

    def keep(cotangents: Sequence[Tensor]) -> Tensor:
        parts = [delta(one) for delta, one in zip(deltas, cotangents, strict=True)]
        return _without_positions(side_by_side(parts, axes, batch.samples, 1), 2).to(batch.dtype)

    source = claims[0].source
    features = operations[0].shape[-1]
    positions = inputs.shape[1] if inputs.dim() == 3 else 1
    return BlockForm(
        source.parameter,
        source.numel + (features if bias else 0),
        [claim.call for claim in claims],
        keep,
        lambda kept: LinearRows(inputs, kept, bias=bias),
        inputs.numel(),
        batch.samples * positions * features,
    )


def linear_swapped(claim: Claim, batch: Batch) -> BlockForm:
    """For one column, a weight of shape (d_in, d_out): inputs and cotangents change places."""
    operation = claim.operation
    assert isinstance(operation, Product)
    inputs = _without_positions(operation.factors(claim.axis), 1).to(batch.dtype)
    delta = operation.cotangents(claim.axis)
    return BlockForm(
        claim.source.parameter,
        claim.source.numel,
        [claim.call],
        lambda cotangents: _without_positions(delta(cotangents[0]), 2).to(batch.dtype),
        lambda kept: LinearRows(kept[0], inputs[None], bias=False),
        inputs.numel(),
        operation.shape.numel(),
    )


def convolution(
    claims: Sequence[Claim], operations: Sequence[Convolution], batch: Batch, *, bias: bool
) -> BlockForm | None:
    """Inputs and cotangents of the uses of a kernel in one or two dimensions; None if a sample has several images."""
    geometry, axes = operations[0].geometry, [claim.axis for claim in claims]
    images = [images_of(one.inputs, axis, 0) for one, axis in zip(operations, axes, strict=True)]
    if len({operand.geometry for operand in operations}) > 1 or len({operand.shape[2:] for operand in images}) > 1:
        return None
    laid = side_by_side(images, axes, batch.samples, 0)
    if laid.shape[1] != 1:
        return None
    inputs = laid[:, 0].to(batch.dtype)
    line = len(geometry.kernel) == 1  # held as an image one pixel high
    inputs = inputs.unsqueeze(2) if line else inputs

    def pair(values: tuple[int, ...], first: int) -> tuple[int, int]:
        return (first, values[0]) if line else (values[0], values[1])

    def keep(cotangents: Sequence[Tensor]) -> Tensor:
        parts = [images_of(one, axis, 1) for one, axis in zip(cotangents, axes, strict=True)]
        kept = side_by_side(parts, axes, batch.samples, 1)[:, :, 0].to(batch.dtype)
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

    output = operations[0].shape
    parameters = claims[0].source.numel + (output[1] if bias else 0)
    calls = [claim.call for claim in claims]
    per_column = batch.samples * output[1:].numel()
    return BlockForm(claims[0].source.parameter, parameters, calls, keep, rows, inputs.numel(), per_column)


def embedding(claims: Sequence[Claim], batch: Batch) -> BlockForm:
    """Indices and cotangents of the uses of a table, next to each other as positions."""
    axes = [claim.axis for claim in claims]
    tables = [claim.operation for claim in claims if isinstance(claim.operation, TableLookup)]
    looked_up = [table.looked_up(axis) for table, axis in zip(tables, axes, strict=True)]
    deltas = [table.cotangents(axis, batch.dtype) for table, axis in zip(tables, axes, strict=True)]
    embeddings, d = tables[0].table
    indices = side_by_side(looked_up, axes, batch.samples, 0).contiguous()

    def keep(cotangents: Sequence[Tensor]) -> Tensor:
        parts = [delta(one.to(batch.dtype)) for delta, one in zip(deltas, cotangents, strict=True)]
        return side_by_side(parts, axes, batch.samples, 1)

    return BlockForm(
        claims[0].source.parameter,
        embeddings * d,
        [claim.call for claim in claims],
        keep,
        lambda kept: EmbeddingRows(indices, kept, embeddings=embeddings),
        indices.numel() * (indices.element_size() // batch.dtype.itemsize or 1),
        indices.numel() * d,
    )


def explicit(parameters: Sequence[Sequence[Claim]], sizes: Sequence[int], batch: Batch) -> BlockForm:
    """Rows in full, summed over all uses."""
    claims = [claim for of_parameter in parameters for claim in of_parameter]
    calls = list(dict.fromkeys(claim.call for claim in claims))
    ways: list[list[tuple[int, Axis, ToRows]]] | None = None

    def keep(cotangents: Sequence[Tensor]) -> Tensor:
        nonlocal ways
        if ways is None:  # what a way is prepared with may be large, and is only made when it is taken
            ways = [
                [(calls.index(claim.call), claim.axis, _way(claim, size, batch)) for claim in of_parameter]
                for of_parameter, size in zip(parameters, sizes, strict=False)
            ]
        parts = []
        for of_parameter in ways:
            total: Tensor | None = None
            for i, axis, way in of_parameter:
                rows = way(cotangents[i])
                if axis.count != batch.samples:
                    whole = rows.new_zeros(len(rows), batch.samples, rows.shape[2])
                    whole[:, axis.start : axis.start + axis.count] = rows
                    rows = whole
                total = rows if total is None else total + rows  # not in place: rows may be the cotangents themselves
            assert total is not None
            parts.append(total)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    columns = sum(size for _, size in zip(parameters, sizes, strict=False))
    return BlockForm(
        claims[0].source.parameter,
        columns,
        calls,
        keep,
        lambda kept: Rows(kept.flatten(0, 1)),
        0,
        batch.samples * columns,
    )


def side_by_side(parts: Sequence[Tensor], axes: Sequence[Axis], samples: int, lead: int) -> Tensor:
    """Return entries of all samples, those of several uses of a parameter as further positions.

    Uses that have different samples share positions, so a model that is called sample by sample gives what one call
    for all of them would. Missing entries are zero.

    Args:
        parts: shape (*lead, count, p, …), one for each use.
        axes: which samples each has.
        samples: b.
        lead: number of further dimensions.

    Returns:
        Shape (*lead, b, P, …).
    """
    whole = [part for part, axis in zip(parts, axes, strict=True) if axis.count == samples]
    lanes: list[tuple[Tensor, set[int]]] = []
    for part, axis in zip(parts, axes, strict=True):
        if axis.count == samples:
            continue
        mine = set(range(axis.start, axis.start + axis.count))
        shape = (*part.shape[:lead], samples, *part.shape[lead + 1 :])
        lane = next((one for one in lanes if one[0].shape == shape and not one[1] & mine), None)
        if lane is None:
            lane = part.new_zeros(shape), set()
            lanes.append(lane)
        lane[0].narrow(lead, axis.start, axis.count).copy_(part)
        lane[1].update(mine)
    joined = [*whole, *(lane for lane, _ in lanes)]
    return joined[0] if len(joined) == 1 else torch.cat(joined, lead + 1)


def _without_positions(tensor: Tensor, positions: int) -> Tensor:
    """Drop the dimension of positions if each sample has one only."""
    return tensor.squeeze(positions) if tensor.shape[positions] == 1 else tensor


def _way(claim: Claim, size: int, batch: Batch) -> ToRows:
    """From cotangents of one use to rows of the whole parameter."""
    rows = claim.operation.rows(claim.role, claim.axis, batch.dtype)
    if claim.whole(size):
        return lambda cotangents: rows(cotangents.to(batch.dtype))

    def placed(cotangents: Tensor) -> Tensor:
        part = rows(cotangents.to(batch.dtype))
        whole = part.new_zeros(*part.shape[:2], size)
        return whole.index_add_(2, claim.source.positions(part.device), part)

    return placed
