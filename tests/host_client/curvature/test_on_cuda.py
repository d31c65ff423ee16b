"""The capture on a GPU, whose kernels of torch are others than the CPU's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.cases import CASES, Case
from tests.host_client.curvature.oracle import assert_same_curvature

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.filterwarnings(
        "ignore::host_client.curvature.errors.CurvatureFallback",
        "ignore:Using padding='same' with even kernel:UserWarning",
    ),
]

HOST_ONLY = {
    "positions as an embedding",
    "masked weight",
    "function of one's own",
    "function of one's own of the only parameter",
}
"""Cases that make tensors on the CPU, or compute with numpy."""


def batch_norm_of_images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


class Recurrent(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = layer(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return self.head(self.layer(x)[0][:, -1])  # type: ignore[no-any-return]


def rms_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 3))


OTHERS = [
    Case("batch norm of images in training", batch_norm_of_images, (2, 6, 6)),
    Case("rms norm", rms_norm, (4,)),
    Case("rnn", lambda: Recurrent(nn.RNN), (6, 4)),
    Case("gru", lambda: Recurrent(nn.GRU), (6, 4)),
    Case("lstm by cudnn", lambda: Recurrent(nn.LSTM), (6, 4)),
]


def factor(case: Case, place: str, dtype: torch.dtype) -> tuple[Tensor, list[int]]:
    problem = case.problem(dtype)
    torch.manual_seed(0)
    model = problem.model.to(place)
    problem.criterion.to(place)
    capture = Capture(model, problem.criterion)
    inputs = problem.inputs.to(place)
    outputs = model(inputs) if problem.call is None else problem.call(model, inputs)
    problem.criterion(outputs, problem.targets.to(place))
    return capture.operator.dense().cpu().double(), [p.numel() for p in problem.trained]


@pytest.mark.parametrize(
    "case", [*OTHERS, *(case for case in CASES if case.name not in HOST_ONLY)], ids=lambda case: case.name
)
def test_curvature_is_that_on_the_cpu(case: Case) -> None:
    expected, sizes = factor(case, "cpu", torch.float64)
    found, _ = factor(case, "cuda", torch.float64)
    assert_same_curvature(found.T @ found, expected.T @ expected, sizes, max(case.tolerance, 1e-9))


@pytest.mark.parametrize("build", [batch_norm_of_images, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(1))])
def test_convolutions_in_tf32_as_torch_has_them_by_default_are_no_mismatch(build: Callable[[], nn.Module]) -> None:
    case = Case("tf32", build, (2, 6, 6), batch=32)
    expected, _ = factor(case, "cpu", torch.float64)
    found, _ = factor(case, "cuda", torch.float32)
    assert (found.T @ found - expected.T @ expected).norm() < 0.02 * (expected.T @ expected).norm()
