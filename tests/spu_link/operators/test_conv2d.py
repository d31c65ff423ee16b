"""Convolutions of every geometry against their Jacobians by automatic differentiation.

Row by row: vectorised Jacobians of grouped, dilated convolutions with respect to their weights are wrong in torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import Conv2dRows
from spu_link.operators import conv2d as module
from tests.spu_link.operators.algebra import assert_agrees_with, assert_dtypes, assert_survives_the_wire, close, random


@dataclass(frozen=True)
class Geometry:
    kernel: tuple[int, int] = (3, 2)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    def extent(self, height: int, width: int) -> tuple[int, int]:
        """Of the output."""
        return tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )


def make(geometry: Geometry, c: int = 2, b: int = 3, into: int = 4, out: int = 6, size: tuple[int, int] = (6, 5)):
    extent = geometry.extent(*size)
    return Conv2dRows(random(b, into, *size), random(c, b, out, *extent, seed=9), **asdict(geometry))


def jacobian(operator: Conv2dRows) -> Tensor:
    """Row (c, i): gradient of Σ δ_ci · conv(input i) with respect to (weight, bias)."""
    inputs, cotangents = operator.inputs, operator.cotangents
    channels = inputs.shape[1] // operator.groups
    weight = torch.zeros(cotangents.shape[2], channels, *operator.kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(cotangents.shape[2], dtype=torch.float64, requires_grad=True)
    parameters = [weight, bias] if operator.bias else [weight]
    rows = []
    for delta in cotangents:
        for x, d in zip(inputs, delta, strict=True):
            y = F.conv2d(x[None], weight, bias, operator.stride, operator.padding, operator.dilation, operator.groups)
            gradients = torch.autograd.grad((d * y[0]).sum(), parameters)
            rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    geometry=st.builds(
        Geometry,
        kernel=pairs,
        stride=pairs,
        padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        groups=st.integers(1, 3),
        bias=st.booleans(),
    ),
    c=st.integers(1, 3),
    b=st.integers(1, 3),
    into=st.integers(1, 2),
    out=st.integers(1, 2),
    size=st.tuples(st.integers(5, 7), st.integers(5, 7)),
)
def test_products(geometry: Geometry, c: int, b: int, into: int, out: int, size: tuple[int, int]) -> None:
    operator = make(geometry, c, b, into * geometry.groups, out * geometry.groups, size)
    assert_agrees_with(operator, jacobian(operator))


def test_depthwise() -> None:
    operator = make(Geometry(groups=4, padding=(1, 1)), into=4, out=8)
    assert_agrees_with(operator, jacobian(operator))


def test_a_single_output_position() -> None:
    operator = make(Geometry(kernel=(6, 5)))
    assert_agrees_with(operator, jacobian(operator))


def test_gram_over_several_stretches_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = make(Geometry(groups=2))
    expected = jacobian(operator)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)
    close(operator.gram(), expected @ expected.T)


@pytest.mark.parametrize("bias", [True, False])
def test_dtypes(bias: bool) -> None:
    assert_dtypes(make(Geometry(bias=bias)))


def test_wire() -> None:
    geometry = Geometry((3, 2), (2, 1), (1, 2), (1, 2), 2, False)
    assert_survives_the_wire(make(geometry))


@pytest.mark.parametrize(
    ("geometry", "named"),
    [
        (Geometry(kernel=(0, 1)), "kernel"),
        (Geometry(stride=(0, 1)), "stride"),
        (Geometry(dilation=(1, 0)), "dilation"),
        (Geometry(groups=0), "groups"),
        (Geometry(groups=3), "groups"),
        (Geometry(stride=(2, 2)), "cotangent"),
        (Geometry(kernel=(7, 7)), "cotangent"),
    ],
)
def test_a_geometry_that_does_not_fit_is_refused(geometry: Geometry, named: str) -> None:
    with pytest.raises(InvalidProgram, match=rf"conv2d\.{named}"):
        Conv2dRows(torch.ones(3, 4, 6, 5), torch.ones(2, 3, 6, 4, 4), **asdict(geometry))


def test_operands_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(InvalidProgram, match=r"conv2d\.cotangent"):
        Conv2dRows(torch.ones(3, 4, 6, 5), torch.ones(2, 4, 6, 4, 4), kernel=(3, 2), bias=True)
    with pytest.raises(InvalidProgram, match=r"conv2d\.input"):
        Conv2dRows(torch.ones(4, 6, 5), torch.ones(2, 3, 6, 4, 4), kernel=(3, 2), bias=True)
