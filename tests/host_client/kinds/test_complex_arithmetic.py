"""Kind F: real parameters that reach the loss through complex arithmetic, and complex ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from host_client import NGDWoodbury
from host_client.curvature import Capture
from tests.host_client.kinds.reference import assert_same, captured, classes, double, gauss_newton
from tests.host_client.kinds.spectra import MODELS, spectral
from tests.networks import Function

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


@pytest.mark.parametrize("name", MODELS)
def test_real_parameters_of_complex_arithmetic(name: str) -> None:
    model = spectral(name)
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    x, y = double(4, 4), classes(4)
    expected = gauss_newton([(twin(x), lambda z: F.cross_entropy(z, y))], list(twin.parameters()))
    assert_same(captured(capture, criterion(model(x), y)), expected, model)


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
@pytest.mark.parametrize("into", [Capture, lambda m, c: NGDWoodbury(m, c, lr=0.1, damping=0.1)], ids=["capture", "NGD"])
def test_a_complex_parameter_is_refused_by_name(
    make: Callable[[], nn.Module], into: Callable[[nn.Module, nn.Module], object]
) -> None:
    model = make()
    name = next(name for name, p in model.named_parameters() if p.is_complex())
    with pytest.raises(ValueError, match=rf"'{name}'.*view_as_real"):
        into(model, nn.CrossEntropyLoss())
