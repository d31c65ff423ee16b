"""Linear layers against their Jacobians by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import LinearRows
from tests.spu_link.operators.algebra import assert_agrees_with, assert_dtypes, assert_survives_the_wire, random


def make(c: int = 2, b: int = 3, d_in: int = 4, d_out: int = 5, *, bias: bool = True) -> LinearRows:
    return LinearRows(random(b, d_in), random(c, b, d_out, seed=9), bias=bias)


def jacobian(operator: LinearRows) -> Tensor:
    """Row (c, i): gradient of δ_ci·(W a_i + e) with respect to (W, e)."""
    inputs, cotangents = operator.inputs, operator.cotangents
    weight = torch.zeros(cotangents.shape[2], inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(cotangents.shape[2], dtype=torch.float64, requires_grad=True)
    parameters = [weight, bias] if operator.bias else [weight]
    rows = []
    for delta in cotangents:
        for a, d in zip(inputs, delta, strict=True):
            gradients = torch.autograd.grad(d @ (weight @ a + bias), parameters)
            rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


@settings(deadline=None)
@given(c=st.integers(1, 4), b=st.integers(1, 4), d_in=st.integers(1, 5), d_out=st.integers(1, 5), bias=st.booleans())
def test_products(c: int, b: int, d_in: int, d_out: int, bias: bool) -> None:
    operator = make(c, b, d_in, d_out, bias=bias)
    assert_agrees_with(operator, jacobian(operator))


@pytest.mark.parametrize("bias", [True, False])
def test_dtypes(bias: bool) -> None:
    assert_dtypes(make(bias=bias))


@pytest.mark.parametrize("bias", [True, False])
def test_wire(bias: bool) -> None:
    assert_survives_the_wire(make(bias=bias))


def test_operands_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(InvalidProgram, match=r"linear\.cotangent"):
        LinearRows(torch.ones(3, 4), torch.ones(2, 5, 6), bias=True)
    with pytest.raises(InvalidProgram, match="dtype"):
        LinearRows(torch.ones(3, 4), torch.ones(2, 3, 6, dtype=torch.float64), bias=True)
