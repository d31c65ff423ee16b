"""Whatever has no curvature is refused, by name and with a way out; what is merely without use is not."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from host_client.curvature import Capture, CurvatureApproximation, UnsupportedCriterion, UnsupportedLayer
from tests.cases import Problem, named
from tests.host_client.curvature.oracle import assert_same_curvature, jacobian


def test_nothing_trained() -> None:
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        Capture(nn.Linear(2, 2).requires_grad_(False), nn.CrossEntropyLoss())


def test_a_parameter_frozen_after_the_capture_has_zero_columns() -> None:
    """Until it is trained again."""
    problem = named("mlp").problem()
    criterion, parameters = problem.criterion, problem.trained
    sizes = [p.numel() for p in parameters]
    capture = Capture(problem.model, criterion)
    first: nn.Module = problem.model[0]  # type: ignore[index]
    for frozen in (True, False, True):
        first.requires_grad_(not frozen)
        outputs = problem.outputs()
        criterion(outputs, problem.targets)
        a = capture.operator.dense()
        assert bool(a[:, : sum(sizes[:2])].any()) is not frozen
        trained = [p for p in parameters if p.requires_grad]
        j = torch.zeros(outputs.numel(), sum(sizes), dtype=torch.float64)
        j[:, sum(sizes) - sum(p.numel() for p in trained) :] = jacobian(outputs, trained)
        z = outputs.detach()
        h = torch.autograd.functional.hessian(lambda z: nn.functional.cross_entropy(z, problem.targets), z)
        assert_same_curvature(a.T @ a, j.T @ h.reshape(z.numel(), -1) @ j, sizes, 1e-10)


@pytest.mark.parametrize("curvature", ["exact", "mc", "empirical"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_empty_batch_is_refused_and_the_next_one_is_not(curvature: str, reduction: str) -> None:
    model, criterion = nn.Linear(5, 3), nn.CrossEntropyLoss(reduction=reduction)
    capture = Capture(model, criterion, curvature=curvature)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedCriterion, match=r"an empty batch, of shape \(0, 3\); skip it"):
        criterion(model(torch.randn(0, 5)), torch.zeros(0, dtype=torch.long))
    criterion(model(torch.randn(4, 5)), torch.tensor([0, 1, 2, 0]))
    assert capture.operator.parameters == 18


def _problem() -> tuple[Problem, Capture]:
    problem = named("mlp").problem()
    return problem, Capture(problem.model, problem.criterion)


@pytest.mark.parametrize("factor", [-1.0, -0.25])
def test_a_negative_factor_of_a_loss_is_refused(factor: float) -> None:
    problem, capture = _problem()
    (factor * problem.loss()).backward()
    with pytest.raises(RuntimeError, match=rf"factors \[{factor}\]; .* no factor may be negative"):
        capture.operator_of_gradients()


@pytest.mark.parametrize("factor", [256.0, 2.0**16])
def test_a_factor_as_of_a_gradient_scaler_is_refused_without_one(factor: float) -> None:
    problem, capture = _problem()
    (factor * problem.loss()).backward()
    with pytest.raises(RuntimeError, match=rf"a factor of {factor:g}, .*grad_scaler="):
        capture.operator_of_gradients()


def test_a_checkpoint_that_changes_buffers_each_time_is_refused() -> None:
    class Checkpointed(nn.Module):
        """A batch norm that is computed again."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            """Logits (b, 4)."""
            normal: Tensor = checkpoint(self.norm, self.first(x), use_reentrant=False)
            return normal

    model, criterion = Checkpointed(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    with pytest.warns(CurvatureApproximation), pytest.raises(UnsupportedLayer, match=r"running statistics.*eval mode"):
        criterion(model(torch.randn(6, 3)), torch.arange(6) % 4)
    model.norm.eval()
    criterion(model(torch.randn(6, 3)), torch.arange(6) % 4)
    assert capture.operator.parameters == 24


def test_rows_that_vanish_but_for_rounding_are_no_mismatch() -> None:
    model = nn.Linear(3, 4).double()

    class Difference(nn.Module):
        """Return the mean of the differences from the mean: nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = model, nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            """Logits (2,) of the whole batch."""
            h = self.body(x)
            logits: Tensor = self.head((h - h.mean(0)).mean(0, keepdim=True))
            return logits

    capture = Capture(Difference(), nn.CrossEntropyLoss(), check="always")
    capture.criterion(capture.model(torch.randn(5, 3, dtype=torch.float64)), torch.tensor([1]))
    assert capture.operator.dense()[:, :16].abs().max() < 1e-12


def test_a_bias_used_twice_leaves_the_rows_of_a_scale_between_alone() -> None:
    class Twice(nn.Module):
        """A bias before and after a scale."""

        def __init__(self) -> None:
            super().__init__()
            self.bias, self.scale = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))

        def forward(self, x: Tensor) -> Tensor:
            """Shape (b, 2)."""
            return (x + self.bias).tanh() * self.scale + self.bias

    model = Twice().double()
    capture, twin, x = Capture(model, nn.MSELoss(), check="never"), Twice().double(), torch.randn(5, 2).double()
    twin.load_state_dict(model.state_dict())
    capture.criterion(model(x), torch.zeros_like(x))
    j = jacobian(twin(x), list(twin.parameters()))
    a = capture.operator.dense()
    torch.testing.assert_close(a.T @ a, j.T @ j * 2 / 10)
