"""Choose how the Jacobian rows of the parameters are held: as factors or in full, whichever has fewer bytes."""

from __future__ import annotations

from collections.abc import Sequence

from host_client.curvature.forms import Batch, BlockForm, convolution, embedding, explicit, linear, linear_swapped
from host_client.curvature.plan import Claim
from host_client.curvature.rules.convolution import Convolution
from host_client.curvature.rules.embedding import TableLookup
from host_client.curvature.rules.products import Product


def blocks_of(claims: Sequence[Claim], sizes: Sequence[int], batch: Batch) -> list[BlockForm | int]:
    """The blocks of all parameters in the order of their columns; for one that has no claims, its index.

    Args:
        claims: all uses of the parameters.
        sizes: elements of each parameter.
        batch: what all blocks have in common.
    """
    of: dict[int, list[Claim]] = {}
    for claim in claims:
        of.setdefault(claim.source.parameter, []).append(claim)
    blocks: list[BlockForm | int] = []
    index = 0
    while index < len(sizes):
        if index not in of:
            blocks.append(index)
        else:
            weight, bias = of[index], of.get(index + 1, [])
            pair = sizes[index], sizes[index + 1] if bias else 0
            if not _belong_together(weight, bias, pair):
                bias = []
            blocks += _of_parameter(weight, bias, pair, batch)
            index += bool(bias)
        index += 1
    return blocks


def _belong_together(weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int]) -> bool:
    """Return whether two parameters of these sizes are used as a weight and its bias, everywhere and as a whole."""
    return len(weight) == len(bias) and all(
        w.call is b.call and (w.role, b.role) == ("weight", "bias") and w.whole(sizes[0]) and b.whole(sizes[1])
        for w, b in zip(weight, bias, strict=True)
    )


def _of_parameter(
    weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int], batch: Batch
) -> list[BlockForm]:
    """The blocks of a parameter, one after the other in the order of its columns; most often it is one."""
    factors = _factors(weight, bias, sizes, batch)
    held = sum(block.fixed + batch.columns * block.per_column for block in factors or ())
    # With as many bytes, rows in full serve better: the device needs them for its Gram matrix anyway.
    if factors and held < batch.columns * batch.samples * sum(sizes):
        return factors
    return [explicit([weight, bias] if bias else [weight], sizes, batch)]


def _factors(
    weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int], batch: Batch
) -> list[BlockForm] | None:
    """The parameter's rows as factors, if there is a form for its uses."""
    operations = [claim.operation for claim in weight]
    if any(claim.role != "weight" for claim in weight):
        return None
    if all(isinstance(operation, Product) for operation in operations):
        return _products(weight, bias, sizes, batch)
    if not all(claim.whole(sizes[0]) for claim in weight):
        return None
    if all(isinstance(operation, TableLookup) for operation in operations):
        return [embedding(weight, batch)]
    convolutions = [operation for operation in operations if isinstance(operation, Convolution)]
    if len(convolutions) == len(operations) and len(convolutions[0].geometry.kernel) <= 2:
        block = convolution(weight, convolutions, batch, bias=bool(bias))
        return None if block is None else [block]
    return None


def _products(
    weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int], batch: Batch
) -> list[BlockForm] | None:
    """Factors of a matrix, or of stretches of its rows that have uses of their own (a packed projection)."""
    transposed = set()
    pieces: dict[int, list[Claim]] = {}
    for claim in weight:
        assert isinstance(claim.operation, Product)
        if not claim.source.contiguous:
            return None
        transposed.add(claim.operation.transposed)
        pieces.setdefault(claim.source.start, []).append(claim)
    if len(transposed) > 1:
        return None
    end = 0
    for start, claims in sorted(pieces.items()):
        shapes = {claim.source.shape for claim in claims}
        if start != end or len(shapes) > 1:
            return None
        end += claims[0].source.numel
    if end != sizes[0]:
        return None
    ordered = [claims for _, claims in sorted(pieces.items())]
    if not transposed.pop():
        return [linear(claims, batch, bias=bool(bias)) for claims in ordered]
    if batch.columns > 1 or len(weight) > 1 or weight[0].axis.count != batch.samples:
        return None
    swapped = linear_swapped(weight[0], batch)
    return [swapped, explicit([bias], sizes[1:], batch)] if bias else [swapped]
