from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses import loss_call
from tests.host_client.curvature.losses.problems import (
    HESSIANS,
    Problem,
    classes,
    divergences,
    gaussians,
    with_graph,
)
from tests.profiles import examples

KINDS = HESSIANS | classes(F.nll_loss) | divergences() | gaussians()


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@settings(max_examples=examples(300))
@given(KINDS, st.booleans())
def test_the_column_is_the_gradient_by_the_root_of_the_divisor(problem: Problem, module: bool) -> None:
    columns = problem.call(module).root("empirical", 1, None)
    outputs = [z.clone().requires_grad_() for z in problem.outputs()]
    loss = problem.loss(*outputs)
    gradients = torch.autograd.grad(loss, outputs)
    # The divisor of torch's own mean.
    summed = Problem(problem.function, problem.inputs, {**problem.options, "reduction": "sum"}, problem.names)
    divisor = (summed.loss(*outputs) / loss).detach()
    for column, gradient in zip(columns, gradients, strict=True):
        torch.testing.assert_close(column, (gradient * divisor.sqrt())[None], rtol=1e-8, atol=1e-12)


def _opaque(criterion: nn.Module, *args: Any) -> tuple[Tensor, ...]:
    return loss_call(criterion, args, {}, criterion(*args)).root("empirical", 1, None)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_any_other_module_has_the_gradient_of_its_result(reduction: str) -> None:
    anchor, positive, negative = (with_graph(torch.randn(4, 3)) for _ in range(3))
    criterion = nn.TripletMarginLoss(reduction=reduction)
    columns = _opaque(criterion, anchor, positive, negative)
    gradients = torch.autograd.grad(criterion(anchor, positive, negative), (anchor, positive, negative))
    for column, gradient in zip(columns, gradients, strict=True):
        torch.testing.assert_close(column, gradient[None] * (2 if reduction == "mean" else 1))


def test_outputs_in_lists_are_found_and_the_graph_is_kept() -> None:
    class Several(nn.Module):
        def forward(self, outputs: list[Tensor], target: Tensor) -> Tensor:
            return sum(F.mse_loss(z, target) for z in outputs)  # type: ignore[return-value]

    first, second = with_graph(torch.randn(4, 3)), with_graph(torch.randn(4, 3))
    criterion, target = Several(), torch.randn(4, 3)
    result = criterion([first, second], target)
    call = loss_call(criterion, ([first, second], target), {}, result)
    assert call.element_shape == (4,)
    assert call.element_dims == ((1,), (1,))
    column, _ = call.root("empirical", 1, None)
    torch.testing.assert_close(column, (2 * (first - target) / 12 * 2).detach()[None])
    result.backward()


def test_outputs_of_different_lengths_and_results_that_are_no_number_are_refused() -> None:
    class Sum(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first.sum() + second.sum()

    with pytest.raises(UnsupportedCriterion, match=r"is Sum, called with.*\(4, 3\), \(2, 3\).*samples in dimension 0"):
        _opaque(Sum(), with_graph(torch.randn(4, 3)), with_graph(torch.randn(2, 3)))
    with pytest.raises(UnsupportedCriterion, match=r"result of shape \(4, 3\)"):
        _opaque(nn.Tanh(), with_graph(torch.randn(4, 3)))
    with pytest.raises(UnsupportedCriterion, match="reduction is 'none'"):
        _opaque(nn.MultiMarginLoss(reduction="none"), with_graph(torch.randn(4, 3)), torch.zeros(4, dtype=torch.long))


def test_the_result_is_needed() -> None:
    call = loss_call(nn.Tanh(), (with_graph(torch.randn(4, 3)),), {}, None)
    with pytest.raises(ValueError, match="needs the result of its call"):
        call.root("empirical", 1, None)
