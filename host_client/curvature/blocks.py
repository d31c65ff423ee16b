"""How the Jacobian rows of the parameters are held: as factors or in full, whichever has fewer bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from host_client.curvature.cotangents import Taker
from host_client.curvature.layouts import Layout
from host_client.curvature.recorder import Use
from host_client.curvature.rules import ToRows
from host_client.curvature.rules.convolution import Convolution
from host_client.curvature.rules.embedding import Embedding
from host_client.curvature.rules.linear import Product
from host_client.curvature.sources import Source
from spu_link.operators import Conv2dRows, EmbeddingRows, LinearRows, Rows
from spu_link.operators.base import BlockFactor


@dataclass(frozen=True)
class Claim:
    """One use of one parameter.

    Attributes:
        number: of the use.
        use: the use.
        layout: where the samples lie in its output.
        role: of the parameter in it.
    """

    number: int
    use: Use
    layout: Layout
    role: str

    @property
    def source(self) -> Source:
        """Which part of the parameter it is."""
        return self.use.sources[self.role]


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


def claims_of(uses: Sequence[Use], layouts: Sequence[Layout], unruled: Mapping[int, str]) -> dict[int, list[Claim]]:
    """The uses of each parameter that is used, but for those that need another way."""
    claims: dict[int, list[Claim]] = {}
    for number, (use, layout) in enumerate(zip(uses, layouts, strict=True)):
        for role, source in use.sources.items():
            if source.parameter not in unruled:
                claims.setdefault(source.parameter, []).append(Claim(number, use, layout, role))
    return claims


def belong_together(weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int]) -> bool:
    """Whether two parameters of these sizes are used as a weight and its bias, everywhere and as a whole."""
    return len(weight) == len(bias) and all(
        w.use is b.use and (w.role, b.role) == ("weight", "bias") and _whole(w, sizes[0]) and _whole(b, sizes[1])
        for w, b in zip(weight, bias, strict=True)
    )


def blocks_of(weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int], batch: Batch) -> list[Block]:
    """The blocks of a parameter, one after the other in the order of its columns; most often it is one.

    Args:
        weight: the uses of the parameter.
        bias: those of its bias, if it belongs to it, or none.
        sizes: elements of the two.
        batch: what all blocks have in common.
    """
    explicit = _explicit([weight, bias] if bias else [weight], sizes, batch)
    factors = _factors(weight, bias, sizes, batch)
    if not factors:
        return [explicit]
    held = sum(block.fixed + batch.columns * block.per_column for block in factors)
    # With as many bytes, rows in full serve better: the device needs them for its Gram matrix anyway.
    return [explicit] if batch.columns * explicit.per_column <= held else factors


def _whole(claim: Claim, size: int) -> bool:
    return claim.source.numel == size and claim.source.contiguous


def _factors(
    weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int], batch: Batch
) -> list[Block] | None:
    """The parameter's rows as factors, if there is a form for its uses."""
    operations = [claim.use.operation for claim in weight]
    if any(claim.role != "weight" for claim in weight):
        return None
    if all(isinstance(operation, Product) for operation in operations):
        return _products(weight, bias, sizes, batch)
    if not all(_whole(claim, sizes[0]) for claim in weight):
        return None
    if all(isinstance(operation, Embedding) for operation in operations):
        return [_embedding(weight, batch)]
    if len(weight) == 1 and isinstance(operations[0], Convolution):
        convolution = operations[0]
        if weight[0].layout.order == "whole" and len(convolution.geometry.kernel) <= 2:
            return [_convolution(weight[0], convolution, batch, bias=bool(bias))]
    return None


def _products(
    weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int], batch: Batch
) -> list[Block] | None:
    """Factors of a matrix, or of stretches of its rows that have uses of their own (a packed projection)."""
    transposed = set()
    pieces: dict[int, list[Claim]] = {}
    for claim in weight:
        operation, source = claim.use.operation, claim.source
        assert isinstance(operation, Product)
        if not (source.contiguous or source.transposed):
            return None
        transposed.add(operation.transposed != source.transposed)
        pieces.setdefault(source.start, []).append(claim)
    if len(transposed) > 1:
        return None
    end = 0
    for start, claims in sorted(pieces.items()):
        extents = {claim.source.numel for claim in claims}
        if start != end or len(extents) > 1:
            return None
        end += extents.pop()
    if end != sizes[0]:
        return None
    ordered = [claims for _, claims in sorted(pieces.items())]
    if not transposed.pop():
        return [_linear(claims, batch, bias=bool(bias)) for claims in ordered]
    if batch.columns > 1 or len(weight) > 1:
        return None
    swapped = _linear_swapped(weight[0], batch)
    return [swapped, _explicit([bias], sizes[1:], batch)] if bias else [swapped]


def _linear(claims: Sequence[Claim], batch: Batch, *, bias: bool) -> Block:
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


def _linear_swapped(claim: Claim, batch: Batch) -> Block:
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


def _convolution(claim: Claim, convolution: Convolution, batch: Batch, *, bias: bool) -> Block:
    geometry, inputs = convolution.geometry, convolution.inputs.to(batch.dtype)
    delta = convolution.cotangents(claim.layout)
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


def _embedding(claims: Sequence[Claim], batch: Batch) -> Block:
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


def _explicit(parameters: Sequence[Sequence[Claim]], sizes: Sequence[int], batch: Batch) -> Block:
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
    if _whole(claim, size):
        return lambda cotangents: rows(cotangents.to(batch.dtype))

    def placed(cotangents: Tensor) -> Tensor:
        part = rows(cotangents.to(batch.dtype))
        whole = part.new_zeros(*part.shape[:2], size)
        return whole.index_add_(2, claim.source.positions(part.device), part)

    return placed
