"""Whatever is captured is a consistent operator, crosses the wire, and is solved by a device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from host_client import Session, connect
from host_client.curvature import Capture
from tests.cases import Case

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel:UserWarning",
    "ignore::host_client.curvature.errors.CurvatureFallback",
)

DAMPING = 0.5


@pytest.fixture(scope="module")
def device() -> Iterator[Session]:
    """One stepped emulator in this process for all cases."""
    with connect("inproc:", clock="stepped", seed=0) as spu, spu.session() as one:
        yield one


@pytest.mark.parametrize("curvature", ["exact", "mc"])
def test_products_are_those_of_the_dense_form(case: Case, curvature: str) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion, curvature=curvature)  # type: ignore[arg-type]
    problem.loss()
    operator = capture.operator
    a = operator.dense()
    m, n = operator.shape
    assert a.shape == (m, n)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(2, n, dtype=torch.float64, generator=generator)
    w = torch.randn(2, m, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(operator.apply(v), v @ a.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator.adjoint(w), w @ a, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator.gram(), a @ a.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("curvature", ["exact", "mc"])
def test_a_device_solves_what_was_captured(case: Case, curvature: str, device: Session) -> None:
    problem = case.problem(torch.float32)
    capture = Capture(problem.model, problem.criterion, curvature=curvature)  # type: ignore[arg-type]
    problem.loss().backward()
    operator = capture.operator_of_gradients()
    gradient = torch.cat([p.grad.flatten() for p in problem.trained if p.grad is not None])
    reading = device.solve(operator, gradient, analog_time=60.0 / DAMPING, damping=DAMPING, start="drive")
    a = operator.dense().double()
    f = a.T @ a + DAMPING * torch.eye(len(gradient), dtype=torch.float64)
    expected = torch.linalg.solve(f, gradient.double())
    error = torch.linalg.vector_norm(reading.value.double() - expected)
    assert error < 1e-4 * torch.linalg.vector_norm(expected)
