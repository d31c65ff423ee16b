"""Kind F: real parameters that reach the loss through complex arithmetic, and complex ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from host_client import NGD
from host_client.curvature import Capture
from tests.host_client.kinds.reference import assert_curvature, classes, double
from tests.host_client.kinds.spectra import MODELS, spectral
from tests.networks import Function

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


@pytest.mark.parametrize("name", MODELS)
def test_real_parameters_of_complex_arithmetic(name: str) -> None:
    assert_curvature(spectral(name), [(double(4, 4), classes(4))])


def test_a_frozen_complex_parameter_is_no_hindrance() -> None:
    model = _complex_scale()
    model.get_parameter("scale").requires_grad_(False)
    assert_curvature(model, [(double(4, 6), classes(4))])


def _complex_scale() -> nn.Module:
    scale = nn.Parameter(torch.randn(4, dtype=torch.complex128))
    return Function(
        lambda m, x: m.head(torch.fft.irfft(torch.fft.rfft(x) * m.scale, n=6)),  # type: ignore[operator]
        scale=scale,
        head=nn.Linear(6, 3, dtype=torch.float64),
    )


def _complex_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3, dtype=torch.complex128))


@pytest.mark.parametrize("make", [_complex_scale, _complex_layer], ids=["scale", "0.weight"])
@pytest.mark.parametrize("into", [Capture, lambda m, c: NGD(m, c, lr=0.1, damping=0.1)], ids=["capture", "NGD"])
def test_a_complex_parameter_is_refused_by_name(
    make: Callable[[], nn.Module], into: Callable[[nn.Module, nn.Module], object]
) -> None:
    model = make()
    name = next(name for name, p in model.named_parameters() if p.is_complex())
    with pytest.raises(ValueError, match=rf"'{name}'.*view_as_real"):
        into(model, nn.CrossEntropyLoss())
