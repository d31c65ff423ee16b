"""Embeddings by name, and which of them fit a device."""

from __future__ import annotations

from collections.abc import Iterator

from host_client.embeddings.base import Embedding
from host_client.embeddings.block import Block
from host_client.embeddings.kronecker import Kronecker
from host_client.embeddings.sample_space import SampleSpace
from spu_link.errors import CapacityExceeded, InvalidProgram, mismatch
from spu_link.operators import Operator

NAMES: dict[str, type[Embedding]] = {embedding.name: embedding for embedding in (SampleSpace, Block, Kronecker)}
"""Embeddings by name; ``"direct"`` is none."""


def embedding_of(given: Embedding | str | None) -> Embedding | None:
    """The embedding of this name, or the one given; None for a cell for each parameter.

    Raises:
        InvalidProgram: for another name.
    """
    if given is None or given == "direct" or isinstance(given, Embedding):
        return given if isinstance(given, Embedding) else None
    if given not in NAMES:
        raise mismatch("embedding", repr(given), f"'direct', {', '.join(map(repr, NAMES))}, an Embedding or None")
    return NAMES[given]()


def fitting(operator: Operator, cells: int) -> Iterator[tuple[Embedding, int]]:
    """Embeddings under which an operator fits a device with this number of cells, and how many they need."""
    for make in NAMES.values():
        embedding = make()
        try:
            needed = embedding.cells(operator)
        except InvalidProgram:
            continue
        if needed <= cells:
            yield embedding, needed


def advice(operator: Operator, cells: int) -> str:
    """In words, what to do with an operator that is too large for a device with this number of cells."""
    ways = [f'embedding="{embedding.name}" ({needed:,} cells)' for embedding, needed in fitting(operator, cells)]
    return f"what would fit: {' or '.join(ways)}" if ways else "no embedding of this operator fits it"


def check_fits(embedding: Embedding, operator: Operator, cells: int) -> None:
    """Refuse an operator that is too large for a device.

    Args:
        embedding: of the problem on the device.
        operator: F.
        cells: how many the device has.

    Raises:
        CapacityExceeded: saying what is needed, and which embedding would do with the cells there are.
        InvalidProgram: for an operator that this embedding has no map for.
    """
    needed = embedding.cells(operator)
    if needed > cells:
        raise CapacityExceeded(
            f"embedding {embedding.name!r} needs {needed:,} cells for {operator!r}, and the device has {cells:,}; "
            f"{advice(operator, cells)}",
            field="cells",
            found=needed,
            expected=f"at most {cells}",
        )
