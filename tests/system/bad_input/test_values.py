"""A value that cannot be is refused where it is."""

from __future__ import annotations

import pytest
import torch

from spu_link import wire
from spu_link.errors import InvalidProgram
from spu_link.operators import Dense, EmbeddingRows, LinearRows, Rows
from spu_link.program import Program
from tests.system.bad_input.programs import TENSOR, dense, program
from tests.system.raw import encoded, refused
from tngd.spu.v1 import spu_pb2 as pb

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("tensor", [*(name for name in TENSOR if name != "embedding.indices"), "dense.matrix"])
def test_a_value_that_is_not_finite_is_refused_wherever_it_is(device, tensor, value):
    bad = dense() if tensor == "dense.matrix" else program()
    _, tensors = wire.header_of(bad)
    tensors[TENSOR.get(tensor, 0)].view(-1)[-1] = value  # shares memory with the program
    named = tensor.replace("sequence", "linear")
    with device.raw() as raw, refused(InvalidProgram, named) as caught:
        raw.upload(*encoded(bad))
    assert str(value) in caught.value.details()
    with device.session() as session, pytest.raises(InvalidProgram, match=f"{named}.*is {value}") as raised:
        session.program(bad.operator, bad.drive, damping=0.1, start=bad.start)
    assert named in raised.value.field
    assert raised.value.found == str(value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("index", [-1, 4, -(2**31), 2**31 - 1])
def test_an_index_out_of_range_is_refused(device, index, dtype):
    indices = torch.tensor([[0, 3], [index, 1]], dtype=dtype)
    bad = Program(EmbeddingRows(indices, torch.ones(1, 2, 2, 2), embeddings=4), torch.ones(8), damping=0.1)
    with device.raw() as raw, refused(InvalidProgram, rf"embedding.indices[1, 0] is {index}; every value must be"):
        raw.upload(*encoded(bad))
    with device.session() as session, pytest.raises(InvalidProgram, match="less than 4") as raised:
        session.program(bad.operator, bad.drive, damping=0.1)
    assert (raised.value.field, raised.value.found) == ("embedding.indices", str(index))


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        ([[1.0, 0.5], [0.4, 1.0]], "asymmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "indefinite"),
        ([[-1.0, 0.0], [0.0, 1.0]], "indefinite"),
        ([[0.0, 1e-3], [1e-3, 0.0]], "indefinite"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dense_matrix_must_be_symmetric_and_positive_semi_definite(device, matrix, match, dtype):
    bad = Program(Dense(torch.tensor(matrix, dtype=dtype)), torch.ones(2, dtype=dtype), damping=5.0)
    with device.raw() as raw, refused(InvalidProgram, match):
        raw.upload(*encoded(bad))
    with device.session() as session, pytest.raises(InvalidProgram, match=match):
        session.program(bad.operator, bad.drive, damping=5.0)


def test_codes_that_run_over_float32_are_refused(device):
    header, data = encoded(Program(Rows(torch.ones(2, 3)), torch.ones(3), damping=0.1, precision="int16"))
    header.tensors[0].scales[1] = 3e38
    with device.raw() as raw, refused(InvalidProgram, "rows[1, 0] is inf"):
        raw.upload(header, data)


def test_what_does_not_fit_into_a_precision_is_refused_before_it_travels(device):
    operator = LinearRows(torch.full((2, 3), 1e5), torch.ones(1, 2, 2), bias=True)
    with device.session() as session:
        with pytest.raises(InvalidProgram, match=r"linear\.input.*float16 ends at.*int16 or bfloat16"):
            session.program(operator, torch.ones(8), damping=0.1, precision="float16")
        with pytest.raises(InvalidProgram, match="precision is 'float8'"):
            session.solve(operator, torch.ones(8), analog_time=1.0, precision="float8")
        assert session.uploaded_bytes == 0


def test_two_dtypes_in_one_block_are_refused(device):
    header, data = encoded(program())
    header.tensors[TENSOR["linear.input"]].dtype = pb.DTYPE_FLOAT64
    with device.raw() as raw, refused(InvalidProgram, "dtype"):
        raw.upload(header, data + bytes(24))
    with pytest.raises(InvalidProgram, match="dtype"):
        LinearRows(torch.ones(2, 3), torch.ones(1, 2, 2, dtype=torch.float64), bias=True)
