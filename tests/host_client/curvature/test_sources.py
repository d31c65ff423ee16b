"""Position of a view in its parameter: against the gradient of each of the view's elements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from host_client.curvature.graph import Graph
from host_client.curvature.sources import Source, source_of

Draw = st.DrawFn
Step = Callable[[Tensor], Tensor]


def source(view: Tensor, parameter: Tensor) -> Source | None:
    """The source of a function's argument."""
    place = Graph([view], {id(parameter): 0}).roots[0]
    assert place is not None
    return source_of(place)


def places(view: Tensor, parameter: Tensor) -> Tensor:
    """For each element of a view, in order, its place in the flattened parameter, by autograd."""
    numbers = torch.arange(1, view.numel() + 1, dtype=torch.float64).view(view.shape)
    (gradient,) = torch.autograd.grad(view, parameter, numbers)
    flat, found = gradient.flatten(), torch.empty(view.numel(), dtype=torch.long)
    used = flat.nonzero()[:, 0]
    found[flat[used].long() - 1] = used
    return found


def assert_lies_right(found: Source, view: Tensor, parameter: Tensor) -> None:
    """Each element of a view is where the source says."""
    expected = places(view, parameter)
    assert found.shape == view.shape
    assert found.numel == view.numel()
    assert torch.equal(found.positions(torch.device("cpu")), expected)
    stretch = torch.equal(expected, torch.arange(len(expected)) + expected[0])
    assert found.contiguous == stretch
    matrix = expected.view(view.shape).T.flatten() if view.dim() == 2 else expected
    assert found.transposed == (
        view.dim() == 2 and not stretch and torch.equal(matrix, torch.arange(len(matrix)) + matrix[0])
    )


def _parameter(*shape: int, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format))


CHAINS: dict[str, tuple[tuple[int, ...], Step]] = {
    "mT": ((2, 4, 6), lambda p: p.mT),
    "T of three dimensions": ((2, 3, 4), lambda p: p.permute(2, 1, 0)),
    "packed: queries": ((12, 4), lambda p: p.chunk(3)[0]),
    "packed: values": ((12, 4), lambda p: p.chunk(3)[2]),
    "packed: keys and values": ((12, 4), lambda p: p.split([4, 8])[1]),
    "packed: keys of keys and values, transposed": (
        (12, 4),
        lambda p: p.split([4, 8])[1].unflatten(0, (2, 4)).unsqueeze(0).transpose(0, -2).squeeze(-2)[0].t(),
    ),
    "packed side by side": ((4, 12), lambda p: p.chunk(3, -1)[1]),
    "packed side by side, transposed": ((4, 12), lambda p: p.chunk(3, 1)[1].t()),
    "packed as a third dimension": ((4, 6), lambda p: p.view(4, 3, 2)[:, 1]),
    "narrowed": ((8, 5), lambda p: p.narrow(1, 1, 3)),
    "split with sizes in the last dimension": ((2, 7), lambda p: p.split([1, 2, 4], -1)[2]),
    "tensor_split": ((7, 2), lambda p: p.tensor_split([2, 3])[2]),
    "flattened": ((3, 4, 5), lambda p: p.flatten()),
    "flattened kernel": ((4, 3, 2, 2), lambda p: p.flatten(1)),
    "kernel of 1 as a matrix": ((4, 3, 1, 1), lambda p: p.squeeze(-1).squeeze(-1).t()),
    "all squeezed": ((1, 4, 1, 3), lambda p: p.squeeze()),
    "squeezed dimensions": ((1, 4, 1, 3), lambda p: p.squeeze((0, 2))),
    "cloned": ((4, 6), lambda p: p.clone().t()),
    "cloned after a transpose": ((4, 6), lambda p: p.t().contiguous()),
    "an alias": ((4, 6), lambda p: p.view_as(p).t()),
    "moved": ((2, 3, 4), lambda p: p.movedim(0, -1)),
    "swapped": ((2, 3, 4), lambda p: p.swapaxes(-1, 0)[:, 1]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_views_lies_where_its_gradient_arrives(name: str) -> None:
    shape, chain = CHAINS[name]
    parameter = _parameter(*shape)
    view = chain(parameter)
    found = source(view, parameter)
    assert found is not None
    assert found.parameter == 0
    assert_lies_right(found, view, parameter)


@pytest.mark.parametrize(
    "chain",
    [
        lambda p: p.flatten(1),
        lambda p: p.permute(0, 2, 3, 1),
        lambda p: p.permute(0, 2, 3, 1).flatten(1),
        lambda p: p[1].flatten(),
        lambda p: p.contiguous().view(4, -1).t(),
        lambda p: p[:, 1:, ::2],
        lambda p: p.unbind(1)[2].mT,
        lambda p: p.clone(),
    ],
)
def test_a_parameter_in_another_memory_format_is_counted_in_the_order_of_its_indices(chain: Step) -> None:
    parameter = _parameter(4, 3, 2, 2, memory_format=torch.channels_last)
    view = chain(parameter)
    found = source(view, parameter)
    if found is not None:  # a view of this format need not be one of the usual format
        assert_lies_right(found, view, parameter)


def test_a_parameter_whose_memory_is_transposed_is_counted_in_the_order_of_its_indices() -> None:
    parameter = nn.Parameter(torch.randn(4, 6, dtype=torch.float64).t())
    view = parameter.t()
    found = source(view, parameter)
    assert found is not None
    assert_lies_right(found, view, parameter)


def test_a_view_that_mixes_the_order_of_entries_is_no_stretch() -> None:
    parameter = _parameter(4, 6)
    view = parameter.t().reshape(8, 3)
    assert source(view, parameter) is None


@pytest.mark.parametrize(
    "other",
    [
        lambda p: p * 1,
        lambda p: p.exp(),
        lambda p: p.expand(2, 4, 6),
        lambda p: p[[0, 2]],
        lambda p: p.flip(0),
        lambda p: torch.cat([p, p]),
        lambda p: p.t() + p.t(),
    ],
)
def test_what_is_no_view_has_no_source(other: Step) -> None:
    parameter = _parameter(4, 6)
    assert source(other(parameter), parameter) is None


def test_the_transpose_and_the_squeezed_view_lie_where_theirs_do() -> None:
    parameter = _parameter(5, 4, 6)
    view = parameter[2]
    found = source(view, parameter)
    assert found is not None
    assert_lies_right(found.transpose(), view.t(), parameter)
    kernel = _parameter(1, 3, 1, 4)
    view = kernel.transpose(1, 3)
    found = source(view, kernel)
    assert found is not None
    squeezed = found.squeeze()
    assert squeezed.shape == (4, 1, 3)
    assert torch.equal(squeezed.positions(torch.device("cpu")), found.positions(torch.device("cpu")))


@st.composite
def _step(draw: Draw, shape: torch.Size) -> Step:
    """A view of a tensor of this shape."""
    n = len(shape)
    if n == 0:
        return lambda t: t.unsqueeze(0)
    dim, other = draw(st.integers(-n, n - 1)), draw(st.integers(-n, n - 1))
    extent = shape[dim]
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return lambda t: t.transpose(dim, other)
    if kind == 1:
        order = draw(st.permutations(range(n)))
        return lambda t: t.permute(order)
    if kind == 2:
        return lambda t: t.unsqueeze(dim)
    if kind == 3:
        return lambda t: t.squeeze(dim)
    if kind == 4:
        index = draw(st.integers(-extent, extent - 1))
        return lambda t: t.select(dim, index)
    if kind == 5:
        start, step = draw(st.integers(0, extent - 1)), draw(st.integers(1, 3))
        end = draw(st.integers(start + 1, extent + 2))
        return lambda t: t[(slice(None),) * (dim % n) + (slice(start, end, step),)]
    if kind == 6:
        size = draw(st.integers(1, extent))
        part = draw(st.integers(0, (extent - 1) // size))
        return lambda t: t.split(size, dim)[part]
    if kind == 7:
        index = draw(st.integers(0, extent - 1))
        return lambda t: t.unbind(dim)[index]
    if kind == 8:
        total = shape.numel()
        rows = draw(st.sampled_from([i for i in range(1, total + 1) if total % i == 0]))
        return lambda t: t.reshape(rows, -1)
    return lambda t: t.clone(memory_format=torch.contiguous_format)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans(), st.data())
def test_any_chain_of_views_lies_where_its_gradient_arrives(shape: list[int], last: bool, data: st.DataObject) -> None:
    memory_format = torch.channels_last if last and len(shape) == 4 else torch.contiguous_format
    parameter = _parameter(*shape, memory_format=memory_format)
    view: Tensor = parameter
    reordered = memory_format is torch.channels_last
    for _ in range(data.draw(st.integers(1, 5))):
        before = view
        view = data.draw(_step(view.shape))(view)
        copied = view.untyped_storage().data_ptr() != before.untyped_storage().data_ptr()
        reordered = reordered or (copied and not before.is_contiguous())
    assume(view is not parameter)
    found = source(view, parameter)
    if found is None:
        assert reordered, "a chain of views has no source"
    else:
        assert_lies_right(found, view, parameter)
