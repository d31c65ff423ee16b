"""No two passes need be alike: batches, lengths, branches and what is trained may change from one to the next."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture
from host_client.curvature.errors import CurvatureFallback
from tests.cases import CASES, Problem, labels
from tests.host_client.curvature.oracle import assert_same_curvature, curvature
from tests.networks import Function

LENGTHS = [(4, 5), (4, 4), (2, 4), (4, 2), (1, 3), (3, 1), (1, 1), (2, 2), (6, 3), (3, 6)]
"""Samples and tokens."""

ANY_LENGTH = [
    "linear on tokens",
    "linear on tokens folded into the batch",
    "linear on tokens before the samples",
    "linear on tokens folded before the samples",
    "attention",
    "attention, tokens first",
    "attention without weights",
    "learnt queries",
    "class token",
    "recurrent loop",
    "lstm",
    "sequence, mean",
    "flattened sequence, mean",
    "squared error of tokens",
]


def _assert_exact(capture: Capture, problem: Problem) -> None:
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, outputs), sizes, 1e-10)


@pytest.mark.parametrize("name", ANY_LENGTH)
@pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureFallback")
def test_batches_and_lengths(name: str) -> None:
    problem = next(case for case in CASES if case.name == name).problem()
    capture = Capture(problem.model, problem.criterion)
    for samples, tokens in LENGTHS:
        inputs = torch.randn(samples, tokens, problem.inputs.shape[-1], dtype=torch.float64)
        other = Problem(problem.model, problem.criterion, inputs, problem.targets, problem.call)
        with torch.no_grad():
            outputs = other.outputs()
        targets = labels(outputs) if isinstance(problem.criterion, nn.CrossEntropyLoss) else torch.randn_like(outputs)
        _assert_exact(capture, Problem(problem.model, problem.criterion, inputs, targets, problem.call))


def test_branches_taken_by_turns() -> None:
    def forward(model: Function, x: Tensor) -> Tensor:
        body = model.a(x) if model.turn % 2 else model.b(model.a(x))  # type: ignore[operator]
        logits: Tensor = model.head(body.tanh()) + model.b(x)[:, :3]  # type: ignore[operator]
        return logits

    model = Function(forward, a=nn.Linear(5, 5), b=nn.Linear(5, 5), head=nn.Linear(5, 3)).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    for turn in range(4):
        model.turn = turn  # type: ignore[assignment]
        _assert_exact(
            capture, Problem(model, criterion, torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
        )


def test_the_order_of_samples_and_tokens_may_change() -> None:
    """As many samples as tokens, so that no shape tells which dimension is which."""

    def forward(model: Function, x: Tensor) -> Tensor:
        if model.turn % 2:
            return model.body(x.transpose(0, 1)).tanh().mean(0)  # type: ignore[operator, no-any-return]
        return model.body(x).tanh().mean(1)  # type: ignore[operator, no-any-return]

    model = Function(forward, body=nn.Linear(4, 3)).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    for turn in range(6):
        model.turn = turn  # type: ignore[assignment]
        _assert_exact(
            capture, Problem(model, criterion, torch.randn(3, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 2]))
        )


def test_a_first_pass_that_tells_nothing_about_the_samples() -> None:
    """All activations are dead in the first pass: no cotangent arrives, so the layout is known only later."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    problem = Problem(model, criterion, torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    _assert_exact(capture, problem)
    with torch.no_grad():
        model[0].bias.zero_()
    _assert_exact(capture, problem)


def test_targets_by_keyword() -> None:
    problem = CASES[2].problem()
    capture = Capture(problem.model, problem.criterion)
    outputs = problem.outputs()
    problem.criterion(input=outputs, target=problem.targets)
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, outputs), sizes, 1e-10)


def test_a_layer_without_a_rule_is_announced_once() -> None:
    problem = next(case for case in CASES if case.name == "bilinear").problem()
    capture = Capture(problem.model, problem.criterion)
    with pytest.warns(CurvatureFallback) as said:
        _assert_exact(capture, problem)
    assert sorted(str(one.message).split("'")[1] for one in said) == ["body.bias", "body.weight"]
    assert all("bilinear" in str(one.message) for one in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _assert_exact(capture, problem)


def test_layers_with_rules_are_not_announced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (
            "mlp",
            "attention",
            "attention, tokens first",
            "encoder",
            "bert, sdpa",
            "gpt2, eager",
            "vit, sdpa",
        ):
            problem = next(case for case in CASES if case.name == name).problem()
            _assert_exact(Capture(problem.model, problem.criterion), problem)


def test_inputs_changed_in_place_after_the_step_leave_the_next_one_alone() -> None:
    problem = CASES[2].problem()
    capture = Capture(problem.model, problem.criterion)
    for _ in range(3):
        _assert_exact(capture, problem)
        problem.inputs.normal_()  # a buffer that a loader fills again
