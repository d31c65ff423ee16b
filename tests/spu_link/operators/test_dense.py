"""F in full."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import Dense
from tests.spu_link.operators.algebra import assert_agrees_with, assert_dtypes, random


def semidefinite(n: int, rank: int) -> Tensor:
    a = random(rank, n)
    return a.T @ a


@given(n=st.integers(1, 8), rank=st.integers(1, 8))
def test_dense_products(n: int, rank: int) -> None:
    assert_agrees_with(Dense(semidefinite(n, rank)), semidefinite(n, rank))


def test_dense_dtypes() -> None:
    assert_dtypes(Dense(semidefinite(4, 2)))


@pytest.mark.parametrize("matrix", [torch.ones(2, 3), torch.ones(3), torch.eye(2, dtype=torch.int32)])
def test_what_is_no_square_matrix_is_refused(matrix: Tensor) -> None:
    with pytest.raises(InvalidProgram, match="matrix"):
        Dense(matrix)
