"""The blocks on the diagonal of the curvature, one after the other or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch

from host_client.embeddings.base import Embedded, Embedding, Stage, check_damped, no_map
from spu_link.errors import mismatch
from spu_link.operators import Dense, FactorOperator, LayerRows, Operator, Rows
from spu_link.program import Program


class Block(Embedding):
    """A system for each layer, or for each group of parameters; what F couples between them is left out.

    The cells needed are the parameters of the largest block. Exact as t → ∞, for a curvature that is the blocks on the
    diagonal of F; with one block it is F, and the embedding is none.

    Args:
        sizes: number of parameters of each block, in their order, which together are all; None for the operator's own
            blocks, the layers. Borders must be borders of layers, but for `Rows` and `Dense` they may be anywhere.

    Raises:
        InvalidProgram: for sizes that are not positive.
    """

    name = "block"
    cell = "block parameter"

    def __init__(self, sizes: Sequence[int] | None = None) -> None:
        self.sizes = None if sizes is None else tuple(sizes)
        if self.sizes is not None and not (self.sizes and all(isinstance(n, int) and n > 0 for n in self.sizes)):
            raise mismatch("sizes", self.sizes, "whole numbers, at least 1 each")

    def cells(self, operator: Operator) -> int:
        """Parameters of the largest block."""
        return max(self._sizes(operator))

    def programs(self, operator: Operator) -> int:
        """One a block."""
        return len(self._sizes(operator))

    def embed(self, operator: Operator) -> Embedded:
        """Cut the operator."""
        return _InBlocks(_cut(operator, self._sizes(operator)))

    def _sizes(self, operator: Operator) -> tuple[int, ...]:
        if isinstance(operator, LayerRows):
            own = tuple(layer.parameters for layer in operator.layers)
        elif isinstance(operator, (FactorOperator, Dense)):
            own = (operator.parameters,)
        else:
            raise no_map(self.name, operator, "a factor A of F = AᵀA, or a Dense matrix")
        if self.sizes is None:
            return own
        if sum(self.sizes) != operator.parameters:
            raise mismatch("sizes", self.sizes, f"{operator.parameters} parameters together")
        if not isinstance(operator, (Rows, Dense)) and not set(accumulate(self.sizes)) <= set(accumulate(own)):
            raise mismatch("sizes", self.sizes, f"borders that are borders of the layers, of sizes {own}")
        return self.sizes


def _cut(operator: Operator, sizes: Sequence[int]) -> list[Operator]:
    """The blocks on the diagonal of F, as operators."""
    ends = list(accumulate(sizes))
    if isinstance(operator, LayerRows):
        layer_ends = list(accumulate(layer.parameters for layer in operator.layers))
        places = [0, *(layer_ends.index(end) + 1 for end in ends)]
        return [LayerRows(operator.layers[i:j]) for i, j in pairwise(places)]
    if len(sizes) == 1:
        return [operator]
    stretches = [slice(end - n, end) for end, n in zip(ends, sizes, strict=True)]
    if isinstance(operator, Dense):
        return [Dense(operator.matrix[stretch, stretch].contiguous()) for stretch in stretches]
    assert isinstance(operator, Rows)
    return [Rows(operator.a[:, stretch].contiguous()) for stretch in stretches]


class _InBlocks(Embedded):
    def __init__(self, blocks: Sequence[Operator]) -> None:
        self._blocks = list(blocks)

    @property
    def first(self) -> Operator:
        return self._blocks[0]

    def plan(self, program: Program) -> Stage:
        check_damped(Block.name, program.damping)
        sizes, start = [block.parameters for block in self._blocks], program.start
        starts = [start] * len(sizes) if isinstance(start, str) else start.split(sizes)
        parts = zip(self._blocks, program.drive.split(sizes), starts, strict=True)
        problems = [replace(program, operator=block, drive=b, start=x0) for block, b, x0 in parts]
        return Stage(problems, lambda found: torch.cat(list(found)))
