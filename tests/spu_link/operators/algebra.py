"""Checks of an operator against its own matrix in full."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spu_link.operators import FactorOperator, Operator
from spu_link.operators.base import BlockFactor
from spu_link.wire.programs import operator_of
from spu_link.wire.tables import block_of

LEADING = [(), (1,), (3,), (2, 3)]
"""Shapes of right-hand sides before the last dimension."""


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_agrees_with(operator: Operator, matrix: Tensor) -> None:
    """Products, Gram matrix and full form of a float64 operator against the matrix it stands for."""
    rows, columns = operator.shape
    assert (rows, columns) == tuple(matrix.shape)
    assert operator.parameters == columns
    close(operator.dense(), matrix)
    f = matrix.T @ matrix if isinstance(operator, FactorOperator) else matrix
    for lead in LEADING:
        v, w = random(*lead, columns, seed=1), random(*lead, rows, seed=2)
        forward, backward = operator.apply(v), operator.adjoint(w)
        close(forward, v @ matrix.T)
        close(backward, w @ matrix)
        close((forward * w).sum(-1), (v * backward).sum(-1))
        close(operator.curvature(v), v @ f)
    for product, extent in ((operator.apply, columns), (operator.adjoint, rows)):
        for wrong in (extent + 1, 2 * extent):
            with pytest.raises(RuntimeError):
                product(random(wrong))
    gram = operator.gram()
    close(gram, matrix @ matrix.T)
    assert torch.equal(gram, gram.T)
    close(operator.curvature_matrix(), f)
    if isinstance(operator, FactorOperator):
        assert_chunks_are_the_matrix(operator, matrix)


def assert_chunks_are_the_matrix(operator: FactorOperator, matrix: Tensor) -> None:
    """Chunks of every number of rows, from one to all, make up the matrix and are of the size asked for."""
    rows, columns = matrix.shape
    for number in range(1, rows + 1):
        chunks = list(operator.dense_chunks(number * columns))
        assert [len(chunk) for chunk in chunks] == [len(chunk) for chunk in matrix.split(number)]
        close(torch.cat(chunks), matrix)


def assert_dtypes(operator: Operator) -> None:
    """Products come in the dtype of what is multiplied, Gram matrices in float64, and `map` changes the operands."""
    rows, columns = operator.shape
    for held in (torch.float32, torch.float64):
        mapped = operator.map(lambda t, dtype=held: t.to(dtype))
        assert mapped.dtype == held
        assert mapped.gram().dtype == mapped.curvature_matrix().dtype == torch.float64
        for dtype in (torch.float32, torch.float64):
            assert mapped.apply(torch.ones(columns, dtype=dtype)).dtype == dtype
            assert mapped.adjoint(torch.ones(rows, dtype=dtype)).dtype == dtype
            assert mapped.curvature(torch.ones(columns, dtype=dtype)).dtype == dtype
    half, full = operator.map(Tensor.float), operator.map(Tensor.double)
    for half_as_wide, operand in zip(_values(half), _values(full), strict=True):
        assert half_as_wide.nbytes * 2 == operand.nbytes
    close(half.apply(random(columns)), full.apply(random(columns)), 1e-4)
    if isinstance(half, FactorOperator):  # float32 operands are values like any other, and rows of them are not rounded
        assert torch.equal(half.curvature_matrix(), half.map(Tensor.double).curvature_matrix())


def _values(operator: Operator) -> list[Tensor]:
    """Operands but indices."""
    return [operand for operand in operator.operands if operand.is_floating_point()]


def assert_survives_the_wire(operator: BlockFactor) -> None:
    """The operator made from its own wire form is the same."""
    again = operator_of([block_of(operator)], [operator.tensors])
    assert type(again) is type(operator)
    assert torch.equal(again.dense(), operator.dense())
    assert again.nbytes == operator.nbytes == sum(t.nbytes for t in operator.tensors.values())


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * (1.0 + float(expected.abs().max())))
