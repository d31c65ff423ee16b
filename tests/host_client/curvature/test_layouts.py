"""Which rows belong to which sample is found out from what random cotangents leave."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from host_client.curvature.layouts import Layout, Probes, Trace, candidates, traces


@given(st.integers(2, 9), st.integers(1, 4), st.sampled_from(["whole", "major", "minor"]), st.integers(0, 1))
def test_rows_are_brought_together_by_sample(b: int, r: int, order: str, dim: int) -> None:
    extent = b if order == "whole" else r * b
    rows = torch.arange(extent)
    sample = rows // r if order == "major" else rows % b  # "whole" is "minor" once
    layout = Layout(dim, order, b)  # type: ignore[arg-type]
    assert layout.samples_of(extent, rows.device).tolist() == sample.tolist()
    shape = (extent, 3) if dim == 0 else (3, extent)
    tensor = sample[:, None].expand(shape) if dim == 0 else sample[None].expand(shape)
    brought = layout.by_sample(tensor, 0)
    assert brought.shape[0] == b
    for i in range(b):
        assert brought[i].unique().tolist() == [i]


def _labels(function: Callable[[Tensor], Tensor], x: Tensor, z_of: Callable[[Tensor], Tensor], b: int) -> Trace:
    x = x.requires_grad_()
    inner = function(x)
    z = z_of(inner)
    left = [torch.autograd.grad(z, inner, one, retain_graph=True)[0] for one in Probes(z, b)[:]]
    return Trace.of(traces(torch.stack(left), range(inner.dim() - 1)))


@pytest.mark.parametrize("b", [2, 3, 4, 7, 8])
def test_a_trace_tells_equal_extents_apart(b: int) -> None:
    """As many tokens as samples: tokens first, samples first, and both flattened in either order."""
    x = torch.randn(b, b, 3)
    first = _labels(lambda x: x * 2, x, lambda y: y.sum(1), b)
    second = _labels(lambda x: x.transpose(0, 1) * 2, x, lambda y: y.sum(0), b)
    major = _labels(lambda x: x.flatten(0, 1) * 2, x, lambda y: y.unflatten(0, (b, b)).sum(1), b)
    minor = _labels(lambda x: x.transpose(0, 1).flatten(0, 1) * 2, x, lambda y: y.unflatten(0, (b, b)).sum(0), b)
    for trace, dims, expected in (
        (first, (0, 1), Layout(0, "whole", b)),
        (second, (0, 1), Layout(1, "whole", b)),
        (major, (0,), Layout(0, "major", b)),
        (minor, (0,), Layout(0, "minor", b)),
    ):
        assert not trace.mixed
        possible = candidates(trace.labels.shape, dims, b)
        assert len(possible) > 1
        assert [layout for layout in possible if trace.fits(layout, dims)] == [expected]


def test_a_trace_shows_every_pair_that_mixes() -> None:
    for i in range(6):
        for j in range(6):
            matrix = torch.eye(6)
            matrix[i, j] = 1.0
            trace = _labels(lambda x: x * 2, torch.randn(6, 3), lambda y, m=matrix: m @ y, 6)
            assert trace.mixed == (i != j)


def test_permuted_samples_fit_nothing() -> None:
    trace = _labels(lambda x: x.roll(1, 0) * 2, torch.randn(5, 3), lambda y: y.roll(1, 0), 5)
    assert not trace.mixed
    assert not any(trace.fits(layout, (0,)) for layout in candidates((5,), (0,), 5))


def test_probes_leave_the_random_numbers_of_the_training_alone() -> None:
    state = torch.get_rng_state()
    Probes(torch.zeros(4, 3), 4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("rows", "b"), [(4, 2), (10, 5), (8, 8)])
def test_probes_taken_one_by_one_are_the_same(rows: int, b: int) -> None:
    probes = Probes(torch.zeros(rows, 3), b)
    assert len(probes) == 2 * (b - 1).bit_length()
    one_by_one = torch.cat([probes[t : t + 1] for t in range(len(probes))])
    assert torch.equal(one_by_one, probes[:])
    # Each sample is in one of the two halves of every pair, as a whole.
    taken = (probes[:] != 0).all(2).unflatten(1, (b, -1))
    assert torch.equal(taken.all(2), taken.any(2))
    first, second = taken.chunk(2)
    assert torch.equal(first, ~second)
