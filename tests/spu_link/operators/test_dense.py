"""F in full, and F + λI."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import Damped, Dense, Rows
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


@given(n=st.integers(1, 8), rank=st.integers(1, 8), damping=st.floats(0, 1e3))
def test_damped_products(n: int, rank: int, damping: float) -> None:
    f = semidefinite(n, rank)
    expected = f + damping * torch.eye(n, dtype=torch.float64)
    for operator in (Damped(Dense(f), damping), Damped(Rows(random(rank, n)), damping)):
        damped = operator.dense()
        torch.testing.assert_close(damped, expected, rtol=1e-12, atol=1e-12)
        assert operator.parameters == n
        for lead in ((), (2, 3)):
            v = random(*lead, n, seed=1)
            for product in (operator.apply(v), operator.adjoint(v), operator.curvature(v)):
                torch.testing.assert_close(product, v @ expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(operator.gram(), expected @ expected, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_damping_is_a_finite_number_at_least_zero(damping: float) -> None:
    with pytest.raises(InvalidProgram, match="damping"):
        Damped(Dense(torch.eye(2)), damping)


def test_damped_travels_as_its_operator() -> None:
    operator = Dense(torch.eye(2))
    assert Damped(operator, 0.1).wire()[0][1] == operator.wire()[0][1]
