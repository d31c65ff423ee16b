"""The Monte-Carlo Fisher: drawn anew each time, and right on average."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

from host_client.curvature import Capture
from tests.cases import Case, named
from tests.host_client.curvature.oracle import curvature
from tests.statistics import FALSE_ALARM

DRAWS = 4000

NAMES = [
    "mlp",
    "sum over the batch",
    "linear on tokens",
    "convolution, explicit rows",
    "group norm",
    "embedding",
    "positions as an embedding",
    "attention",
    "gpt2, sdpa",
    "lora, eager",
    "recurrent loop",
    "lstm cell",
    "class weights and label smoothing",
    "ignored class and weights",
    "probabilities, weights, smoothing",
    "sequence, mean, weights and ignored",
    "flattened sequence, sum",
    "binary with weights",
    "binary sequence",
    "squared error",
    "squared error of tokens",
]


@pytest.fixture(params=NAMES)
def varied(request: pytest.FixtureRequest) -> Case:
    """One case for every loss and for every way in which rows are made."""
    return named(request.param)


@pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureFallback")
def test_expectation_is_the_exact_curvature(varied: Case) -> None:
    """E vᵀAᵀAv = vᵀFv for ten v, half of them in one parameter each.

    Each draw gives vᵀAᵀAv a value of its own, all alike and independent, so by the central limit theorem their mean is
    normal about vᵀFv. That holds far out only for values that are not too skewed: these are sums of squares of bounded
    or normal numbers, and a thousandth of the stated rate is used, which pays for a skewness up to ten.
    """
    problem = varied.problem()
    capture = Capture(problem.model, problem.criterion, curvature="mc", samples=DRAWS)
    torch.manual_seed(7)
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    operator = capture.operator
    b = len(problem.inputs)
    assert operator.shape[0] == DRAWS * b
    sizes = [p.numel() for p in problem.trained]
    v = torch.randn(10, sum(sizes), dtype=torch.float64)
    for k in range(5):
        v[k] *= torch.cat([torch.full((n,), float(i % 5 == k), dtype=torch.float64) for i, n in enumerate(sizes)])
    v = v[v.abs().sum(1) > 0]
    values = DRAWS * operator.apply(v).square().view(len(v), DRAWS, b).sum(2)
    expected = torch.einsum("vi,ij,vj->v", v, curvature(problem, outputs), v)
    errors = (values.mean(1) - expected) / (values.std(1) / math.sqrt(DRAWS)).clamp_min(1e-12 * expected.max())
    limit = stats.norm.isf(FALSE_ALARM / 1000 / len(v) / 2)
    assert errors.abs().max() < limit, f"{errors.tolist()} standard errors"
    # And the test could have seen a factor of two.
    assert (values.std(1) / math.sqrt(DRAWS) * limit < 0.5 * expected).any()


def test_rows_are_gradients_for_a_class_drawn_as_likely_as_the_model_has_it() -> None:
    torch.manual_seed(3)
    model, criterion = nn.Linear(2, 3).double(), nn.CrossEntropyLoss()
    x = torch.randn(1, 2, dtype=torch.float64)
    capture = Capture(model, criterion, curvature="mc", samples=DRAWS)
    logits = model(x)
    criterion(logits, torch.tensor([0]))
    p = logits[0].detach().softmax(0)
    rows = capture.operator.dense() * math.sqrt(DRAWS)
    biases = rows[:, 6:]  # (draws, d): p - e_y, up to its sign
    classes = torch.cdist(biases, p - torch.eye(3, dtype=torch.float64)).argmin(1)
    found = p - torch.eye(3, dtype=torch.float64)[classes]
    torch.testing.assert_close(biases, found, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(rows[:, :6], (found[:, :, None] * x).flatten(1), rtol=1e-12, atol=1e-14)
    counts = classes.bincount(minlength=3).tolist()
    for count, likely in zip(counts, p.tolist(), strict=True):
        assert stats.binomtest(count, DRAWS, likely).pvalue > FALSE_ALARM / 3, f"{counts} of {p.tolist()}"


def test_samples_are_drawn_independently() -> None:
    torch.manual_seed(3)
    model, criterion = nn.Linear(1, 2).double(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature="mc", samples=DRAWS)
    criterion(model(torch.ones(2, 1, dtype=torch.float64)), torch.tensor([0, 0]))
    drawn = capture.operator.dense()[:, -1].view(DRAWS, 2) > 0
    table = [
        [int((drawn[:, 0] == a).logical_and(drawn[:, 1] == b).sum()) for b in (True, False)] for a in (True, False)
    ]
    assert stats.fisher_exact(table).pvalue > FALSE_ALARM, table


def test_every_pass_draws_anew_and_the_seed_of_torch_decides() -> None:
    problem = named("mlp").problem()
    capture = Capture(problem.model, problem.criterion, curvature="mc", samples=8)

    def factor() -> torch.Tensor:
        problem.loss()
        return capture.operator.dense()

    torch.manual_seed(5)
    first, second = factor(), factor()
    torch.manual_seed(5)
    again = factor()
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert first.shape[0] == 8 * len(problem.inputs)
