"""Explicit rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spu_link.errors import InvalidProgram
from spu_link.operators import Rows, rows
from spu_link.operators.base import CHUNK_ELEMENTS
from spu_link.operators.gram import STRIP
from tests.spu_link.operators.algebra import assert_agrees_with, assert_dtypes, assert_survives_the_wire, close, random


@given(m=st.integers(1, 12), n=st.integers(1, 12))
def test_products(m: int, n: int) -> None:
    assert_agrees_with(Rows(random(m, n)), random(m, n))


@pytest.mark.parametrize("m", [STRIP - 1, STRIP, STRIP + 1, 3 * STRIP + 5])
def test_gram_over_several_strips(m: int) -> None:
    assert_agrees_with(Rows(random(m, 20)), random(m, 20))


def test_gram_and_products_over_several_stretches_of_columns() -> None:
    m = 3
    n = CHUNK_ELEMENTS // m + 5
    assert n > rows.SUM_ELEMENTS
    a = random(m, n) / n**0.5
    operator = Rows(a)
    close(operator.gram(), a @ a.T)
    close(operator.apply(a), a @ a.T)


def test_dtypes() -> None:
    assert_dtypes(Rows(random(4, 7)))


def test_wire() -> None:
    assert_survives_the_wire(Rows(random(4, 7)))


def test_numpy_arrays_are_taken_without_a_copy() -> None:
    a = np.ones((2, 3))
    operator = Rows(a)
    a[0, 0] = 5.0
    assert operator.dense()[0, 0] == 5.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_long_sum_in_float32_keeps_its_accuracy(sign: float) -> None:
    n = 1_000_000
    a = (random(1, n, dtype=torch.float32).abs() * sign).clone()
    v = random(n, seed=3).abs()
    expected = a.double() @ v
    assert abs(Rows(a).apply(v) - expected) <= 2e-5 * abs(expected)


@pytest.mark.parametrize(
    "a",
    [
        torch.ones(3),
        torch.ones(2, 3, 4),
        torch.ones(0, 3),
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3).half(),
    ],
)
def test_what_is_no_matrix_of_floats_is_refused(a: torch.Tensor) -> None:
    with pytest.raises(InvalidProgram, match="rows"):
        Rows(a)
