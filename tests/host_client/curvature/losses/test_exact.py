import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from host_client.curvature.losses import loss_columns, loss_root
from tests.host_client.curvature.losses.problems import PROBLEMS, Problem
from tests.profiles import examples


def _exact(criterion: nn.Module, z: Tensor, target: Tensor, samples: int) -> Tensor:
    columns = loss_root(criterion, z, target, samples=samples, kind="exact", draws=1, generator=None)
    assert len(columns) == loss_columns(criterion, z, target, samples=samples, kind="exact", draws=1)
    return columns


@settings(max_examples=examples(400))
@given(PROBLEMS)
def test_columns_are_a_square_root_of_the_hessian_of_the_criterion(problem: Problem) -> None:
    columns = _exact(problem.criterion, problem.z, problem.target, problem.samples)
    torch.testing.assert_close(problem.matrix(columns), problem.hessian(), rtol=1e-9, atol=1e-12)


@given(PROBLEMS)
def test_no_column_reaches_into_two_positions(problem: Problem) -> None:
    columns = _exact(problem.criterion, problem.z, problem.target, problem.samples)
    if problem.kind is nn.CrossEntropyLoss:
        columns = columns.movedim(2, -1).abs().sum(-1)
    reached = (columns != 0).reshape(len(columns), problem.samples, -1).sum(-1)
    assert reached.max() <= 1


@given(PROBLEMS)
def test_some_sample_needs_every_column(problem: Problem) -> None:
    columns = _exact(problem.criterion, problem.z, problem.target, problem.samples)
    used = columns.reshape(len(columns), -1).abs().sum(-1) > 0
    if problem.kind is nn.CrossEntropyLoss:
        assert used.all()


@pytest.mark.parametrize("d", [2, 10])
def test_one_column_fewer_than_classes(d: int) -> None:
    z = torch.randn(5, d)
    assert _exact(nn.CrossEntropyLoss(), z, torch.zeros(5, dtype=torch.long), 5).shape == (d - 1, 5, d)


def test_positions_left_out_have_no_columns() -> None:
    z, target = torch.randn(2, 3, 6), torch.full((2, 6), -100)
    target[0, [1, 4]] = 2
    target[1, 3] = 0
    columns = _exact(nn.CrossEntropyLoss(), z, target, 2)
    assert len(columns) == 2 * 2
    reached = columns.abs().sum((0, 2)) > 0
    assert torch.equal(reached, target >= 0)


def test_positions_of_classes_without_weight_have_no_columns() -> None:
    z, target = torch.randn(2, 3, 4), torch.tensor([[0, 0, 1, 0], [2, 0, 0, 0]])
    assert len(_exact(nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 1.0])), z, target, 2)) == 2


@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)])
def test_a_batch_that_is_all_ignored_has_no_curvature(kind: str, reduction: str, shape: tuple[int, ...]) -> None:
    target = torch.full((shape[0], *shape[2:]), -100)
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    columns = loss_root(criterion, torch.randn(shape), target, samples=2, kind=kind, draws=2, generator=None)  # type: ignore[arg-type]
    assert len(columns) == 2 if kind != "empirical" else 1
    assert not columns.any()


def test_positions_in_rows_or_behind_the_classes_are_the_same() -> None:
    z, target = torch.randn(2, 5, 3), torch.randint(3, (2, 5))  # (b, s, d)
    behind = _exact(nn.CrossEntropyLoss(), z.mT, target, 2)
    in_rows = _exact(nn.CrossEntropyLoss(), z.flatten(0, 1), target.flatten(), 2)
    torch.testing.assert_close(behind.mT, in_rows.unflatten(1, (2, 5)))


def test_a_subclass_that_keeps_the_forward_is_known() -> None:
    class Named(nn.MSELoss):
        pass

    assert _exact(Named(), torch.randn(4, 2), torch.randn(4, 2), 4).shape == (2, 4, 2)
