"""Values come back from each precision as close as it promises, and what does not fit is refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from spu_link import wire
from spu_link.errors import InvalidProgram, UnsupportedBlock
from spu_link.operators import Conv2dRows, Dense, EmbeddingRows, LayerRows, LinearRows, Operator, Rows
from spu_link.precision import CODES, NARROW, PRECISIONS, decode, encode
from spu_link.program import Program
from tests.spu_link.operators.algebra import random
from tngd.spu.v1 import spu_pb2 as pb

SHAPES = array_shapes(min_dims=2, max_dims=4, max_side=5)
FLOAT32 = arrays("float32", SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
HALF = 0.5 + 2 * CODES * torch.finfo(torch.float32).eps
"""Half a scale, and what is rounded in float32 on the way: by a unit in the last place there, and one back."""

MODERATE = arrays("float32", SHAPES, elements=st.floats(-60000, 60000, width=32))


def there_and_back(tensor: Tensor, precision: str, *, alike: bool = False) -> Tensor:
    encoded = encode(tensor, precision, alike=alike)
    assert encoded.values.dtype == PRECISIONS[precision]
    assert encoded.values.shape == tensor.shape
    decoded = decode(encoded.values, [] if encoded.scales is None else encoded.scales.tolist())
    assert decoded.dtype == torch.float32
    assert decoded.shape == tensor.shape
    return decoded


@given(values=FLOAT32, wide=st.booleans())
@example(values=np.array([[6.690628e16, 6.309102e16]], dtype=np.float32), wide=False)
def test_codes_are_within_half_a_scale_of_their_leading_index(values, wide):
    tensor = torch.from_numpy(values).to(torch.float64 if wide else torch.float32)
    error = (there_and_back(tensor, "int16").double() - tensor.double()).abs().flatten(1)
    largest = tensor.double().abs().flatten(1).amax(1, keepdim=True)
    smallest_scale = torch.finfo(torch.float32).tiny
    assert (error <= HALF * torch.clamp(largest / CODES, min=smallest_scale)).all()


@given(values=FLOAT32)
@example(values=np.array([[6.690628e16, 6.309102e16]], dtype=np.float32))
def test_codes_that_are_alike_are_within_half_of_the_one_scale(values):
    tensor = torch.from_numpy(values)
    error = (there_and_back(tensor, "int16", alike=True).double() - tensor.double()).abs()
    assert (error <= HALF * max(float(tensor.abs().max()) / CODES, torch.finfo(torch.float32).tiny)).all()


@given(values=MODERATE, precision=st.sampled_from(["float16", "bfloat16"]))
def test_floats_are_rounded_to_the_nearest(values, precision):
    tensor = torch.from_numpy(values)
    narrow = torch.finfo(PRECISIONS[precision])
    error = (there_and_back(tensor, precision) - tensor).abs()
    assert (error <= tensor.abs() * narrow.eps / 2 + narrow.smallest_normal * narrow.eps).all()


@given(values=FLOAT32)
def test_float32_comes_back_as_it_was(values):
    tensor = torch.from_numpy(values)
    assert torch.equal(there_and_back(tensor, "float32"), tensor)
    assert torch.equal(there_and_back(tensor.double(), "float32"), tensor)


@pytest.mark.parametrize("shape", [(3, 200_000), (1, 300_000), (200_000, 3), (2, 3, 70_000)])
def test_large_tensors_are_encoded_in_blocks_without_a_seam(shape):
    tensor = random(*shape, dtype=torch.float32)
    error = (there_and_back(tensor, "int16") - tensor).abs().flatten(1).amax(1)
    assert (error <= 0.51 * tensor.abs().flatten(1).amax(1) / CODES).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_views_and_zeros(precision):
    view = random(6, 4, 5, dtype=torch.float32).permute(2, 0, 1)[:, ::2]
    torch.testing.assert_close(there_and_back(view, precision), view, rtol=1e-2, atol=1e-3)
    assert torch.equal(there_and_back(torch.zeros(2, 3), precision), torch.zeros(2, 3))


OPERATORS = {
    "rows": lambda t: Rows(t(4, 3)),
    "linear.input": lambda t: LinearRows(t(2, 3), torch.ones(2, 2, 2), bias=True),
    "linear.cotangent": lambda t: LinearRows(torch.ones(2, 3, 3), t(2, 2, 3, 2), bias=True),
    "conv2d.input": lambda t: Conv2dRows(t(2, 1, 3, 3), torch.ones(2, 2, 1, 2, 2), kernel=(2, 2), bias=True),
    "conv2d.cotangent": lambda t: Conv2dRows(torch.ones(2, 1, 3, 3), t(2, 2, 1, 2, 2), kernel=(2, 2), bias=True),
    "embedding.cotangent": lambda t: EmbeddingRows(torch.zeros(2, 3).long(), t(2, 2, 3, 2), embeddings=5),
    "dense.matrix": lambda t: Dense(t(3, 3)),
}


def full_of(value: float, dtype: torch.dtype = torch.float32):
    def tensor(*shape: int) -> Tensor:
        values = torch.ones(shape, dtype=dtype)
        values.view(-1)[-1] = value
        return values

    return tensor


@pytest.mark.parametrize("name", OPERATORS)
def test_what_float16_cannot_hold_is_refused_with_the_name_and_the_way_out(name):
    program = Program(OPERATORS[name](full_of(-65600.0)), torch.ones(OPERATORS[name](full_of(1.0)).parameters))
    program = replace(program, precision="float16")
    with pytest.raises(InvalidProgram, match=r"int16 or bfloat16") as raised:
        wire.header_of(program)
    assert name in raised.value.field
    assert float(raised.value.found) == 65600.0
    for precision in ("int16", "bfloat16", "float32", None):
        wire.header_of(replace(program, precision=precision))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int16"])
def test_a_float64_value_beyond_float32_is_refused(precision):
    with pytest.raises(InvalidProgram, match=r"rows has a value of magnitude 1e\+200.*None"):
        wire.operator_header(Rows(full_of(1e200, torch.float64)(2, 3)), precision)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_where_it_is(precision, value):
    with pytest.raises(InvalidProgram, match=rf"rows\[1, 2\] is {value}"):
        wire.operator_header(Rows(full_of(value)(2, 3)), precision)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("precision", NARROW.values())
def test_every_operand_but_indices_travels_in_16_bits(name, precision):
    operator: Operator = OPERATORS[name](lambda *shape: random(*shape, dtype=torch.float32))
    drive = random(operator.parameters)
    program = Program(operator, drive, start=drive.clone(), precision=precision)
    header, tensors = wire.header_of(program)
    for spec, tensor in zip(header.tensors, tensors, strict=True):
        kept = {pb.ROLE_DRIVE: torch.float64, pb.ROLE_START: torch.float64, pb.ROLE_INDICES: torch.int64}
        assert tensor.dtype == kept.get(spec.role, PRECISIONS[precision])
    nbytes = sum(tensor.nbytes for tensor in tensors)
    assert wire.layout(header, cells=1000, max_bytes=10**6).nbytes == program.nbytes == nbytes
    arrived = wire.program_from(header, memoryview(bytearray().join(wire.byte_views(tensors))))
    assert arrived.operator.dtype == torch.float32
    torch.testing.assert_close(arrived.operator.dense(), operator.dense(), rtol=2e-2, atol=2e-2)
    assert torch.equal(arrived.drive, drive)


@given(n=st.integers(1, 20), rank=st.integers(1, 20), precision=st.sampled_from(list(PRECISIONS)))
def test_a_dense_matrix_stays_symmetric_and_is_not_refused_for_what_rounding_did(n, rank, precision):
    a = random(rank, n, seed=n * rank, dtype=torch.float32)
    header, tensors = wire.header_of(Program(Dense(a.T @ a), torch.ones(n), precision=precision))
    arrived = wire.program_from(header, memoryview(bytearray().join(wire.byte_views(tensors))))
    arrived.check_values()
    assert isinstance(arrived.operator, Dense)
    if torch.equal(a.T @ a, (a.T @ a).T):
        assert torch.equal(arrived.operator.matrix, arrived.operator.matrix.T)


def test_an_indefinite_matrix_is_refused_in_16_bits_too():
    for precision in NARROW.values():
        program = Program(Dense(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), torch.ones(2), precision=precision)
        header, tensors = wire.header_of(program)
        with pytest.raises(InvalidProgram, match="indefinite"):
            wire.program_from(header, memoryview(bytearray().join(wire.byte_views(tensors)))).check_values()


@pytest.mark.parametrize("precision", ["float8", "", "int8", 16])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(InvalidProgram, match="'float32' or 'float16' or 'bfloat16' or 'int16', or None"):
        Program(Rows(torch.ones(2, 3)), torch.ones(3), precision=precision)


def test_a_device_refuses_what_it_has_no_feature_for():
    operator = LayerRows([Rows(torch.ones(2, 3)), LinearRows(torch.ones(2, 1), torch.ones(1, 2, 1), bias=False)])
    program = Program(operator, torch.ones(4), precision="bfloat16")
    header, _ = wire.header_of(program)
    wire.check_features(header, ("rows", "linear", "bfloat16"))
    with pytest.raises(InvalidProgram, match=r"tensors\[0\]\.dtype is bfloat16; .*float32 or float16 or int16"):
        wire.check_features(header, ("rows", "linear", "float16", "int16"))
    with pytest.raises(UnsupportedBlock, match=r"blocks\[1\]") as raised:
        wire.check_features(header, ("rows", "bfloat16"))
    assert (raised.value.found, raised.value.expected) == ("linear", "rows")
