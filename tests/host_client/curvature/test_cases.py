"""Every layer and every loss of the shared table, against dense autograd and, where they cover it, two libraries."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture
from host_client.curvature.errors import CurvatureFallback, UnsupportedCriterion
from tests.cases import CASES, Case, Problem, named
from tests.host_client.curvature.oracle import (
    assert_exact,
    assert_same_curvature,
    curvature,
    hessian,
    jacobian,
    sample_gradients,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel:UserWarning",
    # Said of layers without a rule; that it is said once has a test of its own.
    "ignore::host_client.curvature.errors.CurvatureFallback",
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_curvature_is_that_of_dense_autograd_sample_by_sample(case: Case, dtype: torch.dtype) -> None:
    tolerance = case.tolerance if dtype == torch.float64 else 1e-4
    problem = case.problem(dtype)
    capture = Capture(problem.model, problem.criterion)
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    found = capture.operator.dense()
    assert found.dtype == dtype
    j, h = jacobian(outputs, problem.trained), hessian(problem.criterion, outputs, problem.targets)
    b = len(problem.inputs)
    found = found.double().unflatten(0, (-1, b))
    part = len(h) // b
    total = torch.zeros(j.shape[1], j.shape[1], dtype=torch.float64)
    for i in range(b):
        mine = slice(i * part, (i + 1) * part)
        expected = j[mine].T @ h[mine, mine] @ j[mine]
        of_sample = found[:, i].T @ found[:, i]
        if expected.abs().max() > 0:
            assert_same_curvature(of_sample, expected, problem.sizes, tolerance)
        total += expected
    # And the Hessian of the loss couples no two samples.
    assert_same_curvature(total, j.T @ h @ j, problem.sizes, 1e-12)


@pytest.mark.parametrize("batch", [1, 5], ids=["one sample", "as many samples as tokens"])
def test_batches_of_other_sizes_are_captured_alike(case: Case, batch: int) -> None:
    problem = case.problem(batch=batch)
    capture = Capture(problem.model, problem.criterion)
    if case.name.startswith("ignored") and case.reduction == "mean" and batch == 1:
        with pytest.raises(UnsupportedCriterion, match=r"none counts.*skip"):
            problem.loss()
    else:
        assert_exact(capture, problem, case.tolerance)


def test_passes_of_one_column_at_a_time_give_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_client.curvature.linearise.PASS_ELEMENTS", 1)
    monkeypatch.setattr("host_client.curvature.walk.CHUNK_BYTES", 1)
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    assert_exact(capture, problem, case.tolerance)


@pytest.mark.parametrize("case", [c for c in CASES if "curvlinops" not in c.unlike], ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_curvature_is_that_of_curvlinops(case: Case) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.loss()
    operator = capture.operator
    capture.close()
    ggn = curvlinops.GGNLinearOperator(
        _Outputs(problem),
        problem.criterion,
        problem.trained,
        [(problem.inputs, problem.targets)],
        check_deterministic=False,
    )
    v = torch.randn(3, operator.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (ggn @ v.T).T
    torch.testing.assert_close(
        operator.curvature(v), expected, rtol=0, atol=case.tolerance * expected.abs().max().item()
    )


BACKPACK = [
    "linear layer as the model",
    "linear without bias",
    "mlp",
    "sum over the batch",
    "two classes",
    "batch of one",
    "one feature",
    "convolution",
    "convolution without bias",
    "convolution, explicit rows",
    "stride",
    "padding",
    "padding valid",
    "dilation",
    "groups",
    "depthwise",
    "everything",
    "convolution in 1d",
    "convolution in 3d",
    "convolution in 3d, strided, no bias",
    "transposed in 1d",
    "transposed without bias",
    "transposed in 3d",
    "embedding as the model",
    "frozen batch norm",
    "batch norm in evaluation mode",
    "frozen layer",
    "frozen layer in between",
    "frozen linear weight",
    "frozen bias",
    "frozen convolution weight",
    "frozen embedding",
    "label smoothing",
    "probabilities as targets",
    "pictures of classes",
    "one binary output",
    "squared error",
    "squared error, sum",
    "one real output",
]
"""Cases that BackPACK covers, and gives the right answer for (not for padding modes, sharing, ignored targets)."""


@pytest.mark.parametrize("case", [c for c in CASES if c.name in BACKPACK], ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore:.*full_backward_hook.*:UserWarning")
def test_curvature_is_that_of_backpack(case: Case) -> None:
    backpack = pytest.importorskip("backpack")
    from backpack.extensions import SqrtGGNExact

    problem, other = case.problem(), case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.loss()
    found = capture.operator.dense()
    backpack.extend(other.model)
    backpack.extend(other.criterion)
    with backpack.backpack(SqrtGGNExact()):
        other.loss().backward()
    v = torch.cat([p.sqrt_ggn_exact.flatten(2) for p in other.trained], 2).flatten(0, 1)  # type: ignore[attr-defined]
    assert_same_curvature(found.T @ found, v.T @ v, problem.sizes, case.tolerance)


def test_functions_without_a_rule_are_announced_and_no_others(case: Case) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        problem.loss()
    assert capture.operator.parameters == sum(problem.sizes)
    assert any(one.category is CurvatureFallback for one in said) == case.fallback


def test_columns_are_the_trained_parameters_in_order(case: Case) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    expected = [(path, p) for path, p in problem.model.named_parameters() if p.requires_grad]
    found = capture.parameters()
    assert [path for path, _ in found] == [path for path, _ in expected]
    assert all(a is b for (_, a), (_, b) in zip(found, expected, strict=True))


def test_no_row_is_sent_that_vanishes(case: Case) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    b = len(problem.inputs)
    h = hessian(problem.criterion, outputs, problem.targets).view(b, outputs.numel() // b, b, -1)
    ranks = [int(torch.linalg.matrix_rank(h[i, :, i])) for i in range(b)]
    assert capture.operator.shape == (max(ranks) * b, sum(problem.sizes))


def test_empirical_curvature_is_that_of_the_samples_gradients(case: Case) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion, curvature="empirical")
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    gradients = sample_gradients(problem, outputs) / _divisor(problem, outputs) ** 0.5
    found = capture.operator.dense()
    assert found.shape == gradients.shape
    scale = gradients.abs().max()
    torch.testing.assert_close(found, gradients, rtol=0, atol=case.tolerance * scale.item())


def _divisor(problem: Problem, outputs: Tensor) -> float:
    """Return the divisor of the criterion's sum."""
    with torch.no_grad():
        given = problem.criterion.forward(outputs, problem.targets)
        reduction, problem.criterion.reduction = problem.criterion.reduction, "sum"
        total = problem.criterion.forward(outputs, problem.targets)
        problem.criterion.reduction = reduction
    return (total / given).item()


def test_the_captured_pass_trains_as_any_other(case: Case) -> None:
    problem, other = case.problem(), case.problem()
    Capture(problem.model, problem.criterion)
    torch.manual_seed(1)
    other.loss().backward()
    torch.manual_seed(1)
    capture = Capture(problem.model, problem.criterion)
    problem.loss().backward()
    for (name, p), q in zip(capture.parameters(), other.trained, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14, msg=lambda m, name=name: f"{name}: {m}")


class _Outputs(nn.Module):
    """From inputs to what the criterion is given."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model, self.call = problem.model, problem.call

    def forward(self, inputs: Tensor) -> Tensor:
        """As the problem has it."""
        outputs: Tensor = self.model(inputs) if self.call is None else self.call(self.model, inputs)
        return outputs


def test_dense_curvature_of_a_linear_model_is_the_hessian_of_the_loss() -> None:
    problem = named("linear layer as the model").problem()
    expected = curvature(problem, problem.outputs())
    gradients = torch.autograd.grad(problem.loss(), problem.trained, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    rows = [torch.cat([h.flatten() for h in torch.autograd.grad(g, problem.trained, retain_graph=True)]) for g in flat]
    assert_same_curvature(torch.stack(rows), expected, problem.sizes, 1e-12)
