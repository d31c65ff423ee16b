"""Linear layers against their Jacobians by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import LinearRows
from spu_link.operators import linear as module
from tests.spu_link.operators.algebra import assert_agrees_with, assert_dtypes, assert_survives_the_wire, close, random


def make(
    c: int = 2, b: int = 3, d_in: int = 4, d_out: int = 5, *, positions: int | None = None, bias: bool = True
) -> LinearRows:
    samples = (b,) if positions is None else (b, positions)
    return LinearRows(random(*samples, d_in), random(c, *samples, d_out, seed=9), bias=bias)


def jacobian(operator: LinearRows) -> Tensor:
    """Row (c, i): gradient of Σ_p δ_cip·(W a_ip + e) with respect to (W, e)."""
    inputs, cotangents = operator.inputs, operator.cotangents
    weight = torch.zeros(cotangents.shape[-1], inputs.shape[-1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(cotangents.shape[-1], dtype=torch.float64, requires_grad=True)
    parameters = [weight, bias] if operator.bias else [weight]
    rows = []
    for delta in cotangents:
        for a, d in zip(inputs, delta, strict=True):
            gradients = torch.autograd.grad((d * (a @ weight.T + bias)).sum(), parameters)
            rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


@given(
    c=st.integers(1, 4),
    b=st.integers(1, 4),
    d_in=st.integers(1, 5),
    d_out=st.integers(1, 5),
    positions=st.none() | st.integers(1, 6),
    bias=st.booleans(),
)
def test_products(c: int, b: int, d_in: int, d_out: int, positions: int | None, bias: bool) -> None:
    operator = make(c, b, d_in, d_out, positions=positions, bias=bias)
    assert_agrees_with(operator, jacobian(operator))


@pytest.mark.parametrize(("positions", "way"), [(1, "_gram_of_pairs"), (9, "_row_stretches")])
def test_both_ways_to_a_gram_matrix_with_positions_are_taken_and_agree(
    positions: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = make(c=1, b=4, positions=positions)
    expected = jacobian(operator)
    taken = []
    original = getattr(LinearRows, way)
    monkeypatch.setattr(LinearRows, way, lambda *arguments: taken.append(way) or original(*arguments))
    close(operator.gram(), expected @ expected.T)
    assert taken


def test_gram_over_several_stretches_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = make(positions=9)
    expected = jacobian(operator)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)
    close(operator.gram(), expected @ expected.T)


@pytest.mark.parametrize("positions", [None, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_dtypes(bias: bool, positions: int | None) -> None:
    assert_dtypes(make(bias=bias, positions=positions))


@pytest.mark.parametrize("positions", [None, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_wire(bias: bool, positions: int | None) -> None:
    assert_survives_the_wire(make(bias=bias, positions=positions))


def test_factors_that_are_views_are_taken_as_what_they_show() -> None:
    inputs, cotangents = random(4, 3, 5).transpose(0, 1), random(2, 6, 3, 4).permute(0, 2, 3, 1)
    operator = LinearRows(inputs, cotangents, bias=True)
    assert_agrees_with(operator, jacobian(operator))


@pytest.mark.parametrize(
    ("inputs", "cotangents"),
    [((3, 4), (2, 5, 6)), ((3, 4), (2, 3, 1, 6)), ((3, 7, 4), (2, 3, 6)), ((3, 7, 4), (2, 3, 8, 6))],
)
def test_operands_that_do_not_fit_together_are_refused(inputs: tuple[int, ...], cotangents: tuple[int, ...]) -> None:
    with pytest.raises(InvalidProgram, match=r"linear\.cotangent"):
        LinearRows(torch.ones(inputs), torch.ones(cotangents), bias=True)


@pytest.mark.parametrize("inputs", [(4,), (3, 4, 5, 6), (3, 0, 4)])
def test_inputs_with_other_dimensions_are_refused(inputs: tuple[int, ...]) -> None:
    with pytest.raises(InvalidProgram, match=r"linear\.input"):
        LinearRows(torch.ones(inputs), torch.ones(2, *inputs), bias=True)


def test_two_dtypes_are_refused() -> None:
    with pytest.raises(InvalidProgram, match="dtype"):
        LinearRows(torch.ones(3, 4), torch.ones(2, 3, 6, dtype=torch.float64), bias=True)
