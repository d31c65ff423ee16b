"""How the Jacobian rows of the parameters are held: as factors or in full, whichever has fewer bytes."""

from __future__ import annotations

from collections.abc import Sequence

from host_client.curvature.claims import Claim
from host_client.curvature.forms import Batch, Block, convolution, embedding, explicit, linear, linear_swapped
from host_client.curvature.rules.convolution import Convolution
from host_client.curvature.rules.embedding import Embedding
from host_client.curvature.rules.linear import Product


def blocks_of(weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int], batch: Batch) -> list[Block]:
    """The blocks of a parameter, one after the other in the order of its columns; most often it is one.

    Args:
        weight: the uses of the parameter.
        bias: those of its bias, if it belongs to it, or none.
        sizes: elements of the two.
        batch: what all blocks have in common.
    """
    full = explicit([weight, bias] if bias else [weight], sizes, batch)
    factors = _factors(weight, bias, sizes, batch)
    if not factors:
        return [full]
    held = sum(block.fixed + batch.columns * block.per_column for block in factors)
    # With as many bytes, rows in full serve better: the device needs them for its Gram matrix anyway.
    return [full] if batch.columns * full.per_column <= held else factors


def _factors(
    weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int], batch: Batch
) -> list[Block] | None:
    """The parameter's rows as factors, if there is a form for its uses."""
    operations = [claim.use.operation for claim in weight]
    if any(claim.role != "weight" for claim in weight):
        return None
    if all(isinstance(operation, Product) for operation in operations):
        return _products(weight, bias, sizes, batch)
    if not all(claim.whole(sizes[0]) for claim in weight):
        return None
    if all(isinstance(operation, Embedding) for operation in operations):
        return [embedding(weight, batch)]
    if len(weight) == 1 and isinstance(operations[0], Convolution):
        operation = operations[0]
        if weight[0].layout.order == "whole" and len(operation.geometry.kernel) <= 2:
            return [convolution(weight[0], operation, batch, bias=bool(bias))]
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
        return [linear(claims, batch, bias=bool(bias)) for claims in ordered]
    if batch.columns > 1 or len(weight) > 1:
        return None
    swapped = linear_swapped(weight[0], batch)
    return [swapped, explicit([bias], sizes[1:], batch)] if bias else [swapped]
