"""Samples lie where an axis says: against labels of each entry, written by brute force."""

from __future__ import annotations

from math import prod

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from host_client.curvature.axis import WHOLE, Axis

Shape = tuple[int, ...]


@st.composite
def axes(draw: st.DrawFn, whole: bool = True) -> tuple[Shape, Axis]:
    """A shape, and where samples lie in it."""
    before, after = (tuple(draw(st.lists(st.integers(1, 3), max_size=2))) for _ in range(2))
    start = draw(st.integers(0, 2))
    if whole and draw(st.booleans()):
        return (*before, *after), Axis(WHOLE, 1, start, 1)
    outer, count, inner = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    return (*before, outer * count * inner, *after), Axis(len(before), inner, start, count)


@st.composite
def views(draw: st.DrawFn) -> tuple[Shape, Axis, Shape]:
    """The same, with another shape that as many entries have."""
    shape, axis = draw(axes(whole=False))
    viewed: list[int] = []
    rest = prod(shape)
    while rest > 1 and len(viewed) < 5:
        viewed.append(draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0])))
        rest //= viewed[-1]
    return shape, axis, (*viewed, rest)


def labels(shape: Shape, axis: Axis) -> Tensor:
    """The sample of each entry, one entry at a time."""
    found = torch.full(shape, axis.start)
    if axis.dim != WHOLE:
        for place in torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(-1, len(shape)).tolist():
            found[tuple(place)] = axis.start + place[axis.dim] // axis.inner % axis.count
    return found


def everywhere(shape: Shape, axis: Axis) -> list[Axis]:
    """All axes that a shape can have with the samples of another one."""
    return [
        Axis(dim, inner, axis.start, axis.count)
        for dim, n in enumerate(shape)
        for inner in range(1, n + 1)
        if n % (inner * axis.count) == 0
    ]


@given(views())
def test_a_view_has_the_axis_of_the_same_entries_and_none_only_where_there_is_none(
    drawn: tuple[Shape, Axis, Shape],
) -> None:
    shape, axis, viewed = drawn
    expected = labels(shape, axis).view(viewed)
    found = axis.in_view(shape, viewed)
    right = [one for one in everywhere(viewed, axis) if torch.equal(labels(viewed, one), expected)]
    assert ([] if found is None else [found]) == right[:1]
    if found is not None:
        assert found.in_view(viewed, shape) == axis


@given(axes())
def test_entries_by_sample_are_those_with_its_label_in_their_order(drawn: tuple[Shape, Axis]) -> None:
    shape, axis = drawn
    tensor = torch.arange(2 * prod(shape)).view(2, *shape)
    found = axis.by_sample(tensor, 1)
    assert found.shape[:2] == (2, axis.count)
    for sample in range(axis.count):
        mine = labels(shape, axis) == axis.start + sample
        assert torch.equal(found[:, sample].reshape(2, -1), tensor[:, mine])
    assert found.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@given(axes(), st.data())
def test_what_is_broadcast_over_samples_is_the_same_for_each(drawn: tuple[Shape, Axis], data: st.DataObject) -> None:
    shape, axis = drawn
    aligned = tuple(1 if d == axis.dim or data.draw(st.booleans()) else n for d, n in enumerate(shape))
    tensor = torch.arange(prod(aligned)).view(aligned)
    found = axis.by_sample(tensor.expand(shape), 0)
    assert torch.equal(found, tensor.view(axis.rest(aligned, shape)).expand_as(found))


@given(axes(), st.integers(1, 3), st.data())
def test_an_unpacked_cotangent_has_the_entries_of_its_sample_alone(
    drawn: tuple[Shape, Axis], c: int, data: st.DataObject
) -> None:
    shape, axis = drawn
    packed = torch.randn(c, *shape)
    packed[torch.rand(packed.shape) < 0.1] = torch.inf  # zero times infinity would not vanish
    number = data.draw(st.integers(1, 4))
    columns = [data.draw(st.integers(0, c - 1)) for _ in range(number)]
    samples = [data.draw(st.integers(0, axis.start + axis.count)) for _ in range(number)]
    found = axis.unpack(packed, torch.tensor(columns), torch.tensor(samples))
    of = labels(shape, axis)
    for one, column, sample in zip(found, columns, samples, strict=True):
        assert torch.equal(one, torch.where(of == sample, packed[column], torch.zeros(())))


@given(axes(), st.integers(1, 3))
def test_entries_are_scaled_by_the_weight_of_their_sample(drawn: tuple[Shape, Axis], c: int) -> None:
    shape, axis = drawn
    packed, weights = torch.randn(c, *shape), torch.randn(c, axis.start + axis.count)
    found = axis.scale(packed, weights)
    of = labels(shape, axis)
    for column in range(c):
        assert torch.equal(found[column], packed[column] * weights[column][of])


@given(axes(whole=False), axes(whole=False))
def test_the_same_axis_elsewhere_differs_in_its_dimension_alone(
    drawn: tuple[Shape, Axis], other: tuple[Shape, Axis]
) -> None:
    (_, axis), dim = drawn, other[1].dim
    assume(dim != axis.dim)
    moved = axis.at(dim)
    assert moved == Axis(dim, axis.inner, axis.start, axis.count)
    assert moved.at(axis.dim) == axis
