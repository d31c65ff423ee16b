"""Embeddings against their Jacobians by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import EmbeddingRows
from spu_link.operators import embedding as module
from spu_link.operators.zeros import ZeroRows
from spu_link.program import Program
from tests.spu_link.operators.algebra import assert_agrees_with, assert_dtypes, assert_survives_the_wire, close, random


def make(c: int = 2, b: int = 3, p: int = 4, d: int = 5, embeddings: int = 6, looked_up: int = 6) -> EmbeddingRows:
    generator = torch.Generator().manual_seed(c + 10 * b + 100 * p)
    indices = torch.randint(looked_up, (b, p), generator=generator)
    return EmbeddingRows(indices, random(c, b, p, d, seed=9), embeddings=embeddings)


def jacobian(operator: EmbeddingRows) -> Tensor:
    """Row (c, i): gradient of Σ_p δ_cip · W[index_ip] with respect to W."""
    weight = torch.zeros(operator.embeddings, operator.cotangents.shape[3], dtype=torch.float64, requires_grad=True)
    rows = [
        torch.autograd.grad((F.embedding(index, weight) * d).sum(), weight)[0].flatten()
        for delta in operator.cotangents
        for index, d in zip(operator.indices, delta, strict=True)
    ]
    return torch.stack(rows)


@given(
    c=st.integers(1, 3),
    b=st.integers(1, 4),
    p=st.integers(1, 6),
    d=st.integers(1, 4),
    embeddings=st.integers(1, 9),
    data=st.data(),
)
def test_products(c: int, b: int, p: int, d: int, embeddings: int, data: st.DataObject) -> None:
    looked_up = data.draw(st.integers(1, embeddings))
    operator = make(c, b, p, d, embeddings, looked_up)
    assert_agrees_with(operator, jacobian(operator))


def test_a_token_in_every_sample_and_twice_in_one() -> None:
    indices = torch.tensor([[0, 0, 3], [2, 0, 1], [0, 1, 1]])
    operator = EmbeddingRows(indices, random(2, 3, 3, 4), embeddings=5)
    assert_agrees_with(operator, jacobian(operator))


def test_gram_over_several_stretches_of_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = make(b=4, p=7, embeddings=4, looked_up=4)
    expected = jacobian(operator)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)
    close(operator.gram(), expected @ expected.T)


def test_a_large_vocabulary_costs_no_memory_for_what_was_not_looked_up() -> None:
    """Explicit rows would take 2.4 TB."""
    operator = EmbeddingRows(torch.arange(60).view(3, 20) * 10**6 // 4, random(1, 3, 20, 8), embeddings=10**8)
    close(operator.gram(), torch.diag(operator.cotangents.square().sum((0, 2, 3))))


def test_dtypes() -> None:
    assert_dtypes(make())
    assert make().map(Tensor.float).indices.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_wire(dtype: torch.dtype) -> None:
    one = make()
    operator = EmbeddingRows(one.indices.to(dtype), one.cotangents, embeddings=one.embeddings)
    assert_survives_the_wire(operator)
    close(operator.gram(), one.gram())


@pytest.mark.parametrize("index", [-1, 6, 2**40])
def test_an_index_out_of_range_is_refused_where_values_are_looked_at(index: int) -> None:
    operator = make()
    program = Program(operator, torch.zeros(operator.parameters))
    program.check_values()
    operator.indices[1, 2] = index
    with pytest.raises(InvalidProgram, match=rf"embedding\.indices\[1, 2\] is {index}; .* less than 6"):
        program.check_values()


@pytest.mark.parametrize(
    ("indices", "cotangents", "embeddings", "named"),
    [
        (torch.zeros(3, 4), torch.ones(2, 3, 4, 5), 6, "indices"),
        (torch.zeros(3, 4, dtype=torch.int16), torch.ones(2, 3, 4, 5), 6, "indices"),
        (torch.zeros(3, 4, 1, dtype=torch.int64), torch.ones(2, 3, 4, 5), 6, "indices"),
        (torch.zeros(3, 0, dtype=torch.int64), torch.ones(2, 3, 0, 5), 6, "indices"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.ones(2, 4, 3, 5), 6, "cotangent"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.ones(2, 3, 4), 6, "cotangent"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.ones(2, 3, 4, 5).half(), 6, "cotangent"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.ones(2, 3, 4, 5), 0, "embeddings"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.ones(2, 3, 4, 5), -1, "embeddings"),
    ],
)
def test_operands_that_do_not_fit_together_are_refused(
    indices: Tensor, cotangents: Tensor, embeddings: int, named: str
) -> None:
    with pytest.raises(InvalidProgram, match=rf"embedding\.{named}"):
        EmbeddingRows(indices, cotangents, embeddings=embeddings)


def test_zeros_for_parameters_that_a_batch_does_not_use() -> None:
    zeros = ZeroRows(2, 3, 5, dtype=torch.float64)
    assert_agrees_with(zeros, torch.zeros(6, 5, dtype=torch.float64))
    assert_dtypes(zeros)
