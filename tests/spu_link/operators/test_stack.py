"""Several passes stacked are one pass over all their samples."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import Conv2dRows, EmbeddingRows, LayerRows, LinearRows, Rows, stack
from spu_link.operators.base import BlockFactor
from tests.spu_link.operators.algebra import assert_agrees_with, close, random

C = 2


def layer(kind: str, b: int, seed: int, p: int = 3, c: int = C) -> BlockFactor:
    """A factor with b samples; one kind always has the same parameters."""
    if kind == "rows":
        return Rows(random(c * b, 8, seed=seed))
    if kind == "linear":
        return LinearRows(random(b, 3, seed=seed), random(c, b, 2, seed=seed + 1), bias=True)
    if kind == "sequence":
        return LinearRows(random(b, p, 3, seed=seed), random(c, b, p, 2, seed=seed + 1), bias=True)
    if kind == "embedding":
        indices = torch.randint(4, (b, p), generator=torch.Generator().manual_seed(seed))
        return EmbeddingRows(indices, random(c, b, p, 2, seed=seed), embeddings=4)
    images, cotangents = random(b, 2, 3 + p, 4, seed=seed), random(c, b, 1, 2 + p, 3, seed=seed + 1)
    return Conv2dRows(images, cotangents, kernel=(2, 2), bias=False)


KINDS = ["rows", "linear", "sequence", "embedding", "conv2d"]


def expected(operators: list[LayerRows], weights: list[float], columns: Sequence[int] = (C, C, C)) -> Tensor:
    """The rows (c, samples of all passes) of the stack in full, zero where a pass has fewer."""
    parts = []
    for operator, weight, c in zip(operators, weights, columns, strict=False):
        rows = weight**0.5 * operator.dense().view(c, -1, operator.parameters)
        parts.append(F.pad(rows, (0, 0, 0, 0, 0, max(columns) - c)))
    return torch.cat(parts, dim=1).flatten(0, 1)


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    samples=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    weights=st.lists(st.floats(0, 4), min_size=3, max_size=3),
    columns=st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
def test_micro_batches_of_the_same_forms_keep_them(
    kinds: list[str], samples: list[int], weights: list[float], columns: list[int]
) -> None:
    operators = [
        LayerRows([layer(kind, b, seed=10 * i + j, c=c) for j, kind in enumerate(kinds)])
        for i, (b, c) in enumerate(zip(samples, columns, strict=False))
    ]
    weights, columns = weights[: len(operators)], columns[: len(operators)]
    stacked = stack(operators, weights, columns)
    assert [type(one) for one in stacked.layers] == [type(one) for one in operators[0].layers]
    assert_agrees_with(stacked, expected(operators, weights, columns))


def test_its_curvature_is_the_weighted_sum() -> None:
    operators = [LayerRows([layer("linear", b, seed=b), layer("conv2d", b, seed=b)]) for b in (2, 3)]
    v = random(operators[0].parameters)
    total = 0.4 * operators[0].curvature(v) + 0.6 * operators[1].curvature(v)
    close(stack(operators, [0.4, 0.6], [C, C]).curvature(v), total)


def test_the_passes_themselves_stay_as_they_are() -> None:
    operators = [LayerRows([layer(kind, 2, seed=i) for kind in KINDS]) for i in range(2)]
    before = [operator.dense().clone() for operator in operators]
    stack(operators, [0.25, 0.75], [C, C])
    for operator, rows in zip(operators, before, strict=True):
        assert torch.equal(operator.dense(), rows)


@pytest.mark.parametrize("kind", ["sequence", "embedding"])
def test_sequences_of_different_lengths_stay_factors(kind: str) -> None:
    operators = [LayerRows([layer(kind, b, seed=b, p=p)]) for b, p in ((2, 3), (1, 5), (3, 1))]
    stacked = stack(operators, [1.0, 2.0, 3.0], [C, C, C])
    assert isinstance(stacked.layers[0], type(operators[0].layers[0]))
    assert_agrees_with(stacked, expected(operators, [1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    "pair",
    [
        [layer("linear", 2, seed=0), layer("rows", 3, seed=1)],
        [layer("rows", 2, seed=0), layer("sequence", 3, seed=1)],
        [layer("embedding", 2, seed=0), layer("linear", 3, seed=1)],
        [layer("linear", 2, seed=0), layer("sequence", 1, seed=1)],
        [layer("conv2d", 2, seed=0, p=2), layer("conv2d", 2, seed=1, p=4)],
        [
            LinearRows(random(2, 3), random(C, 2, 2), bias=True),
            LinearRows(random(2, 1), random(C, 2, 8), bias=False),
        ],
    ],
    ids=["linear and rows", "rows and sequence", "embedding and linear", "with positions", "images", "bias"],
)
def test_layers_in_different_forms_become_explicit_rows(pair: list[BlockFactor]) -> None:
    operators = [LayerRows([one]) for one in pair]
    stacked = stack(operators, [1.0, 0.5], [C, C])
    assert isinstance(stacked.layers[0], Rows)
    assert_agrees_with(stacked, expected(operators, [1.0, 0.5]))


def test_passes_that_do_not_fit_together_are_refused() -> None:
    one, other = LayerRows([layer("linear", 2, seed=0)]), LayerRows([Rows(random(2 * C, 7))])
    with pytest.raises(InvalidProgram, match="weights"):
        stack([], [], [])
    with pytest.raises(InvalidProgram, match="weights"):
        stack([one], [1.0, 1.0], [C])
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidProgram, match="weights"):
            stack([one], [weight], [C])
    for columns in (0, 3):
        with pytest.raises(InvalidProgram, match="columns"):
            stack([one], [1.0], [columns])
    with pytest.raises(InvalidProgram, match="columns"):
        stack([one], [1.0], [C, C])
    with pytest.raises(InvalidProgram, match="operators"):
        stack([one, other], [1.0, 1.0], [C, C])
