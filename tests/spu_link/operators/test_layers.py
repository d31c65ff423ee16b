"""Layers side by side."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import Conv2dRows, EmbeddingRows, LayerRows, LinearRows, Rows
from tests.spu_link.operators.algebra import assert_agrees_with, assert_dtypes, random

C, B = 2, 3

BLOCKS = [
    Rows(random(C * B, 4)),
    LinearRows(random(B, 3), random(C, B, 2, seed=1), bias=True),
    LinearRows(random(B, 3, seed=2), random(C, B, 2, seed=3), bias=False),
    Conv2dRows(random(B, 2, 4, 3), random(C, B, 3, 3, 2, seed=4), kernel=(2, 2), bias=True),
    LinearRows(random(B, 2, 3, seed=5), random(C, B, 2, 2, seed=6), bias=True),
    EmbeddingRows(torch.tensor([[0, 1], [1, 1], [3, 0]]), random(C, B, 2, 2, seed=7), embeddings=4),
]


@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4))
def test_products(blocks: list) -> None:
    assert_agrees_with(LayerRows(blocks), torch.cat([block.dense() for block in blocks], dim=1))


def test_products_leave_the_blocks_alone() -> None:
    operator = LayerRows(BLOCKS)
    before = operator.dense()
    operator.gram()
    operator.apply(random(operator.parameters))
    assert torch.equal(operator.dense(), before)


def test_dtypes() -> None:
    assert_dtypes(LayerRows(BLOCKS))
    assert LayerRows([BLOCKS[0], BLOCKS[1].map(Tensor.float)]).dtype == torch.float64


def test_the_wire_has_every_block_in_order() -> None:
    kinds = [block.kind for block in LayerRows(BLOCKS).to_blocks()]
    assert kinds == [
        "rows",
        "linear",
        "linear",
        "conv2d",
        "linear",
        "embedding",
    ]


@pytest.mark.parametrize("blocks", [[], [Rows(torch.ones(2, 3)), Rows(torch.ones(3, 3))]])
def test_blocks_that_do_not_fit_together_are_refused(blocks: list[Rows]) -> None:
    with pytest.raises(InvalidProgram, match="layers"):
        LayerRows(blocks)
