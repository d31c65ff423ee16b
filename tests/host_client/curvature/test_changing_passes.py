"""No two passes need be alike: batches, lengths, branches and what is trained may change from one to the next."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from host_client.curvature import Capture, Check, CurvatureFallback
from tests.cases import Problem, named
from tests.cases.targets import labels
from tests.host_client.curvature.oracle import assert_captured, assert_exact, assert_same_curvature, curvature
from tests.networks import Function, parameter

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
    "attention, scores flattened by the model",
    "learnt queries",
    "class token",
    "recurrent loop",
    "lstm",
    "sequence, mean",
    "flattened sequence, mean",
    "squared error of tokens",
]


@pytest.mark.parametrize("name", ANY_LENGTH)
@pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureFallback")
def test_batches_and_lengths(name: str) -> None:
    problem = named(name).problem()
    capture = Capture(problem.model, problem.criterion)
    for samples, tokens in LENGTHS:
        inputs = torch.randn(samples, tokens, problem.inputs.shape[-1], dtype=torch.float64)
        other = Problem(problem.model, problem.criterion, inputs, problem.targets, problem.call)
        with torch.no_grad():
            outputs = other.outputs()
        targets = labels(outputs) if isinstance(problem.criterion, nn.CrossEntropyLoss) else torch.randn_like(outputs)
        assert_exact(capture, Problem(problem.model, problem.criterion, inputs, targets, problem.call))


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
        assert_exact(
            capture, Problem(model, criterion, torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
        )


def test_the_order_of_samples_and_tokens_may_change() -> None:
    """As many samples as tokens, so that no shape shows which dimension is which."""

    def forward(model: Function, x: Tensor) -> Tensor:
        if model.turn % 2:
            return model.body(x.transpose(0, 1)).tanh().mean(0)  # type: ignore[operator, no-any-return]
        return model.body(x).tanh().mean(1)  # type: ignore[operator, no-any-return]

    model = Function(forward, body=nn.Linear(4, 3)).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    for turn in range(6):
        model.turn = turn  # type: ignore[assignment]
        assert_exact(
            capture, Problem(model, criterion, torch.randn(3, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 2]))
        )


def test_rows_picked_by_a_mask_that_changes() -> None:
    """As a masked language model picks its tokens: two of each sample, then three of one and one of the other."""
    case = named("sequence, mean")
    problem = case.problem(batch=2)
    capture = Capture(problem.model, problem.criterion)
    masks = torch.tensor([[[1, 0, 1, 0, 0], [0, 0, 1, 1, 0]], [[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]]]).bool()
    for mask in masks:
        picked = Problem(
            problem.model, problem.criterion, problem.inputs, torch.tensor([0, 1, 2, 0]), lambda m, x, k=mask: m(x)[k]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CurvatureFallback)
            assert_exact(capture, picked)


@pytest.mark.parametrize("check", ["always", "never"])
def test_rows_joined_to_constants_of_other_lengths(check: Check) -> None:
    """The recorded calls and their shapes are the same each time; where the rows come to lie is not."""

    def forward(model: Function, x: Tensor) -> Tensor:
        parts = [model.before, model.body(x), model.after]  # type: ignore[operator]
        joined = torch.cat([part for part in parts if len(part)])  # type: ignore[arg-type, misc]
        return model.head(joined.view(2, 3, 4).tanh().mean(0))  # type: ignore[operator, no-any-return]

    model = Function(forward, body=nn.Linear(5, 4), head=nn.Linear(4, 3)).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion, check=check)
    for before in (0, 3, 1, 2, 3, 0):
        model.before, model.after = torch.ones(before, 4).double(), torch.ones(3 - before, 4).double()
        x = torch.randn(3, 5, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if before % 3 else "error", CurvatureFallback)
            assert_exact(capture, Problem(model, criterion, x, torch.tensor([0, 1, 2])))


def test_two_losses_of_one_pass_add_up() -> None:
    """An auxiliary head, weighed by 0.3."""
    model = Function(
        lambda m, x: (m.head(m.body(x).tanh()), m.head(m.body(x).square())),  # type: ignore[operator]
        body=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
    ).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    expected = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    expected = torch.diag(expected)
    total: Tensor | float = 0.0
    outputs = model(x)
    for z, weight in zip(outputs, (1.0, 0.3), strict=True):
        total = total + weight * criterion(z, y)
        expected = expected + weight * curvature(Problem(model, criterion, x, y), z)
    assert isinstance(total, Tensor)
    total.backward()
    a = capture.operator_of_gradients().dense()
    assert_same_curvature(a.T @ a, expected, [p.numel() for p in model.parameters()], 1e-10)


def test_activations_that_are_computed_again_in_the_backward_pass() -> None:
    model = Function(
        lambda m, x: m.head(checkpoint(lambda y: m.body(y).tanh(), m.first(x), use_reentrant=False)),  # type: ignore[operator]
        first=nn.Linear(5, 4),
        body=nn.Linear(4, 4),
        head=nn.Linear(4, 3),
    ).double()
    criterion = nn.CrossEntropyLoss()
    problem = Problem(model, criterion, torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    capture = Capture(model, criterion)
    for _ in range(2):
        assert_exact(capture, problem)
        problem.loss().backward()


@pytest.mark.parametrize(
    "out", [lambda z: z, lambda z: (z,), lambda z: {"loss": z.sum(), "logits": z}], ids=["", "tuple", "dict"]
)
def test_models_may_take_and_give_whatever_they_like(out: Callable[[Tensor], Any]) -> None:
    model = Function(lambda m, batch: out(m.body(batch["x"])), body=nn.Linear(5, 3)).double()  # type: ignore[operator, index]

    def call(m: nn.Module, x: Tensor) -> Tensor:
        given = m({"x": x})
        return given if isinstance(given, Tensor) else given["logits"] if isinstance(given, dict) else given[0]

    criterion = nn.CrossEntropyLoss()
    inputs, targets = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    assert_exact(Capture(model, criterion), Problem(model, criterion, inputs, targets, call))


def test_a_first_pass_that_shows_nothing_about_the_samples() -> None:
    """All activations are dead in the first pass: no cotangent arrives, so the layout is known only later."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    problem = Problem(model, criterion, torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    assert_exact(capture, problem)
    with torch.no_grad():
        model[0].bias.zero_()
    assert_exact(capture, problem)


def test_targets_by_keyword() -> None:
    problem = named("mlp").problem()
    capture = Capture(problem.model, problem.criterion)
    outputs = problem.outputs()
    problem.criterion(input=outputs, target=problem.targets)
    assert_captured(capture.operator, problem, outputs)


def test_inputs_changed_in_place_after_the_step_leave_the_next_one_alone() -> None:
    problem = named("mlp").problem()
    capture = Capture(problem.model, problem.criterion)
    for _ in range(3):
        assert_exact(capture, problem)
        problem.inputs.normal_()  # a buffer that a loader fills again


@pytest.mark.parametrize("name", ["mlp", "attention", "bert, sdpa"])
def test_several_captures_see_the_same_pass(name: str) -> None:
    problem = named(name).problem()
    captures = [Capture(problem.model, problem.criterion) for _ in range(3)]
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    for capture in captures:
        assert_captured(capture.operator, problem, outputs)


def test_a_captured_model_may_be_a_part_of_another_one() -> None:
    """As a generator is of its pair with a discriminator."""
    part = nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double()
    whole = nn.Sequential(part, nn.Linear(4, 3)).double()
    criterion = nn.CrossEntropyLoss()
    inputs, targets = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    captures = {model: Capture(model, criterion) for model in (whole, part)}
    outputs = whole(inputs)
    criterion(outputs, targets)
    for model, capture in captures.items():
        assert_captured(capture.operator, Problem(model, criterion, inputs, targets), outputs)


def test_a_function_that_torch_does_not_dispatch_is_noticed() -> None:
    class Product(torch.autograd.Function):
        """x Wᵀ."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x @ w.T

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return gradient @ w, gradient.T @ x

    model = Function(
        lambda m, x: m.head((Product.apply(x, m.w) + x @ m.w.T).tanh()),  # type: ignore[operator]
        w=parameter(4, 5),
        head=nn.Linear(4, 3),
    ).double()
    criterion = nn.CrossEntropyLoss()
    problem = Problem(model, criterion, torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    with pytest.warns(CurvatureFallback, match="'w'"):
        assert_exact(Capture(model, criterion), problem)
