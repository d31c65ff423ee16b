"""The Monte-Carlo Fisher is the exact curvature in expectation."""

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from host_client.curvature.losses import loss_columns, loss_root
from tests.host_client.curvature.losses.problems import Problem

DRAWS = 200_000
FALSE_ALARMS = 1e-6
"""Probability that one test fails with nothing wrong (Bonferroni over entries, normal by the many draws). Seeds are
fixed, so that it fails always or never."""


def _problem(kind: type[nn.Module], shape: tuple[int, ...], target: Tensor, samples: int, **options: object) -> Problem:
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Problem(kind, options, z, target, samples)


def _weights(*weights: float) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64)


_CLASSES = torch.tensor([[0, 2, 1], [1, -100, 2]])
_OUTPUTS = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.3, 0.0]], dtype=torch.float64)

PROBLEMS = {
    "classes": _problem(nn.CrossEntropyLoss, (4, 3), torch.tensor([0, 2, 1, 1]), 4),
    "summed": _problem(nn.CrossEntropyLoss, (4, 3), torch.tensor([0, 2, 1, 1]), 4, reduction="sum"),
    "weighted": _problem(nn.CrossEntropyLoss, (4, 3), torch.tensor([0, 2, 1, 1]), 4, weight=_weights(0.2, 3.0, 1.0)),
    "positions": _problem(nn.CrossEntropyLoss, (2, 3, 3), _CLASSES, 2, weight=_weights(0.2, 3.0, 1.0)),
    "flattened": _problem(nn.CrossEntropyLoss, (6, 3), _CLASSES.flatten(), 2, label_smoothing=0.3),
    "probabilities": _problem(nn.CrossEntropyLoss, (2, 3), _OUTPUTS.softmax(1), 2, weight=_weights(0.2, 3.0, 1.0)),
    "mse": _problem(nn.MSELoss, (2, 3), _OUTPUTS, 2),
    "mse, summed": _problem(nn.MSELoss, (2, 3), _OUTPUTS, 2, reduction="sum"),
    "bce": _problem(nn.BCEWithLogitsLoss, (2, 3), _OUTPUTS, 2),
    "bce, weighted": _problem(
        nn.BCEWithLogitsLoss, (2, 3), _OUTPUTS, 2, weight=_weights(0.5, 1.0, 2.0), pos_weight=_weights(4.0, 0.2, 1.0)
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_expectation_is_the_exact_curvature(name: str) -> None:
    problem = PROBLEMS[name]
    columns = loss_root(
        problem.criterion,
        problem.z,
        problem.target,
        samples=problem.samples,
        kind="mc",
        draws=DRAWS,
        generator=torch.Generator().manual_seed(0),
    )
    by_sample = columns.reshape(DRAWS, problem.samples, -1) * DRAWS**0.5
    products = by_sample[..., :, None] * by_sample[..., None, :]  # unbiased, one of each draw
    error = products.mean(0) - _diagonal_blocks(problem.hessian(), problem.samples)
    standard = products.std(0) / DRAWS**0.5
    threshold = stats.norm.isf(FALSE_ALARMS / 2 / error.numel())
    assert (error.abs() <= threshold * standard + 1e-12).all()
    # Only then does this mean something: every block is known to a few percent.
    assert (threshold * standard).max() < 0.1 * products.mean(0).abs().max()


def _diagonal_blocks(matrix: Tensor, samples: int) -> Tensor:
    n = len(matrix) // samples
    return matrix.view(samples, n, samples, n).diagonal(dim1=0, dim2=2).movedim(-1, 0)


def test_draws_are_columns_and_no_two_are_alike() -> None:
    problem = PROBLEMS["mse"]
    criterion, z, target = problem.criterion, problem.z, problem.target
    columns = loss_root(criterion, z, target, samples=2, kind="mc", draws=3, generator=None)
    assert columns.shape == (3, 2, 3)
    assert loss_columns(criterion, z, target, samples=2, kind="mc", draws=3) == 3
    assert not torch.equal(columns[0], columns[1])


def test_the_generator_decides_the_draws() -> None:
    for problem in PROBLEMS.values():
        first, second = (
            loss_root(
                problem.criterion,
                problem.z,
                problem.target,
                samples=problem.samples,
                kind="mc",
                draws=2,
                generator=torch.Generator().manual_seed(7),
            )
            for _ in range(2)
        )
        assert torch.equal(first, second)


def test_labels_are_drawn_by_the_models_own_probabilities_even_of_many_classes() -> None:
    # 40,000 classes, of which the last alone has a chance.
    z = torch.full((1, 40_000), -torch.inf)
    z[0, -1] = 0.0
    columns = loss_root(
        nn.CrossEntropyLoss(), z, torch.tensor([0]), samples=1, kind="mc", draws=500, generator=torch.Generator()
    )
    assert not columns.any()


def test_draws_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="0 Monte-Carlo samples; at least one"):
        loss_root(nn.MSELoss(), torch.ones(1), torch.ones(1), samples=1, kind="mc", draws=0, generator=None)
