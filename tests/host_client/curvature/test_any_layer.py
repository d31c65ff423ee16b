"""Layers with whatever options there are have the curvature of dense autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.cases import Problem
from tests.cases.targets import labels
from tests.host_client.curvature.oracle import assert_exact
from tests.profiles import examples

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _assert_exact(model: nn.Module, inputs: Tensor) -> None:
    model = model.double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    with torch.no_grad():
        targets = labels(model(inputs))
    assert_exact(capture, Problem(model, criterion, inputs, targets))


def _classifier(layer: nn.Module, sample: tuple[int, ...]) -> nn.Module:
    with torch.no_grad():
        features = layer(torch.zeros(1, *sample)).numel()
    return nn.Sequential(layer, nn.Softplus(), nn.Flatten(), nn.Linear(features, 2))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution, and the shape of an image it fits."""
    space = draw(st.integers(1, 3))
    per_axis = st.tuples(*[st.integers(1, 3 if space < 3 else 2)] * space)
    groups, kernel, dilation = draw(st.integers(1, 2)), draw(per_axis), draw(per_axis)
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    same = draw(st.booleans())
    padding = tuple(draw(st.integers(0, 2)) for _ in range(space))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    # Other modes take the padding from the image, which must be wider than it.
    smallest = [max(r + 1, p + 1) for r, p in zip(reach, padding, strict=True)]
    image = tuple(size + draw(st.integers(0, 2)) for size in smallest)
    options: dict[str, Any] = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": kernel,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding": "same" if same else padding,
        "padding_mode": mode,
        "stride": 1 if same else draw(per_axis),
    }
    return CONVOLUTIONS[space](**options), (options["in_channels"], *image)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A transposed convolution, and the shape of an image it fits."""
    space = draw(st.integers(1, 3))
    per_axis = st.tuples(*[st.integers(1, 3 if space < 3 else 2)] * space)
    groups, kernel, dilation, stride = draw(st.integers(1, 2)), draw(per_axis), draw(per_axis), draw(per_axis)
    image = tuple(draw(st.integers(1, 3)) for _ in range(space))
    whole = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(image, stride, dilation, kernel, strict=True)]
    # At least one pixel is left.
    padding = tuple(draw(st.integers(0, min(2, (size - 1) // 2))) for size in whole)
    further = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    options: dict[str, Any] = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": kernel,
        "dilation": dilation,
        "stride": stride,
        "padding": padding,
        "output_padding": further,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    return TRANSPOSED[space](**options), (options["in_channels"], *image)


@settings(max_examples=examples(60))
@given(st.random_module(), st.one_of(convolutions(), transposed_convolutions()), st.integers(1, 3))
def test_any_convolution(seed: object, drawn: tuple[nn.Module, tuple[int, ...]], b: int) -> None:
    layer, sample = drawn
    _assert_exact(_classifier(layer, sample), torch.randn(b, *sample, dtype=torch.float64))


@settings(max_examples=examples(40))
@given(
    st.random_module(),
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 4),
)
def test_any_linear_layer_on_any_leading_dimensions(
    seed: object, leading: list[int], d_in: int, d_out: int, bias: bool, b: int
) -> None:
    sample = (*leading, d_in)
    _assert_exact(_classifier(nn.Linear(d_in, d_out, bias=bias), sample), torch.randn(b, *sample, dtype=torch.float64))


@settings(max_examples=examples(40))
@given(
    st.random_module(),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_any_attention(seed: object, tokens: int, keys: int, b: int, batch_first: bool, bias: bool, own: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, bias=bias)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x if batch_first else x.transpose(0, 1)
            axis = 1 if batch_first else 0
            key = x if own else x.narrow(axis, 0, min(keys, tokens)).cos()
            logits: Tensor = self.head(self.attention(x, key, key, need_weights=own)[0].sum(axis).tanh())
            return logits

    _assert_exact(Model(), torch.randn(b, tokens, 4, dtype=torch.float64))
