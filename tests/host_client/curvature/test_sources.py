"""Views of a parameter know where their elements lie in it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature.sources import source_of, source_of_view


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w,
        lambda w: w[1:3],
        lambda w: w.T,
        lambda w: w[:, 1:],
        lambda w: w.view(2, 2, 5),
        lambda w: w[2],
        lambda w: w[1:, ::2].T,
        lambda w: w.unsqueeze(0).expand(3, -1, -1),
        lambda w: w.chunk(2)[1].T,
    ],
)
def test_positions_are_those_of_the_elements(view: Callable[[Tensor], Tensor]) -> None:
    parameter = nn.Parameter(torch.arange(20.0).view(4, 5))
    seen = view(parameter)
    source = source_of_view(source_of(7, parameter), parameter, seen)
    assert source is not None
    assert source.parameter == 7
    assert source.positions(torch.device("cpu")).tolist() == seen.flatten().tolist()
    assert source.contiguous == (seen.is_contiguous())


def test_copies_and_other_orders_are_no_views() -> None:
    parameter = nn.Parameter(torch.randn(4, 3, 2, 2))
    source = source_of(0, parameter)
    assert source_of_view(source, parameter, parameter.clone()) is None
    assert source_of_view(source, parameter, parameter.double()) is None
    assert source_of_view(source, parameter, parameter.view(torch.int32)) is None
    last = nn.Parameter(parameter.detach().to(memory_format=torch.channels_last))
    assert source_of_view(source_of(0, last), last, last[0]) is None
