import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from host_client.curvature.losses import loss_call
from tests.host_client.curvature.losses.problems import (
    HESSIANS,
    Problem,
    classes,
    divergences,
    gaussians,
    matrix,
    scalars,
    with_graph,
)
from tests.profiles import examples


def _exact(problem: Problem, module: bool, by_name: bool = False) -> Tensor:
    call = problem.call(module, by_name)
    columns = call.root("exact", 1, None)
    assert all(len(column) == call.rank("exact", 1) for column in columns)
    assert len(columns) == len(problem.names)
    return matrix(call, columns)


@settings(max_examples=examples(400))
@given(HESSIANS, st.booleans(), st.booleans())
def test_columns_are_a_square_root_of_the_hessian(problem: Problem, module: bool, by_name: bool) -> None:
    torch.testing.assert_close(_exact(problem, module, by_name), problem.hessian(), rtol=1e-8, atol=1e-12)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@given(classes(F.nll_loss) | divergences(), st.booleans())
def test_behind_a_log_softmax_log_probabilities_have_the_hessian_in_the_logits(problem: Problem, module: bool) -> None:
    logits = problem.inputs["input"]
    dim = min(1, logits.dim() - 1)
    a = Problem(lambda input, target, **options: problem.function(input.log_softmax(dim), target, **options),
                problem.inputs, problem.options)  # fmt: skip
    z = Problem(problem.function, {**problem.inputs, "input": logits.log_softmax(dim)}, problem.options)
    jacobian = torch.func.jacrev(lambda x: x.log_softmax(dim))(logits).reshape(logits.numel(), -1)
    root = _exact(z, module)
    torch.testing.assert_close(jacobian.T @ root @ jacobian, a.hessian(), rtol=1e-8, atol=1e-12)


@given(gaussians(), st.booleans())
def test_a_gaussian_has_the_hessian_of_its_mean_and_the_fisher_information_of_its_variance(
    problem: Problem, module: bool
) -> None:
    if "var" not in problem.names:
        expected = problem.hessian()
    else:
        # The Hessian is quadratic in the target: its mean is that over two points a standard deviation from the mean.
        z, var = problem.inputs["input"], problem.inputs["var"]
        root = var.clamp_min(0.2).sqrt()
        expected = sum(
            Problem(problem.function, {**problem.inputs, "target": z + sign * root}, problem.options, problem.names)
            .hessian()
            .div(2)
            for sign in (-1, 1)
        )  # type: ignore[assignment]
    torch.testing.assert_close(_exact(problem, module), expected, rtol=1e-8, atol=1e-12)


@given(classes() | classes(F.nll_loss))
def test_elements_that_do_not_count_have_no_columns(problem: Problem) -> None:
    if problem.function is F.nll_loss:
        problem.inputs["input"] = problem.inputs["input"].log_softmax(min(1, problem.inputs["input"].dim() - 1))
    call = problem.call(module=True)
    counts = call.counts()
    (columns,) = call.root("exact", 1, None)
    if problem.inputs["target"].is_floating_point():
        assert counts is None
    else:
        assert counts is not None
        assert torch.equal(columns.abs().sum((0, *(1 + dim for dim in call.element_dims[0]))) > 0, counts)


@given(scalars())
def test_every_output_counts(problem: Problem) -> None:
    assert problem.call(module=False).counts() is None


@pytest.mark.parametrize(
    ("function", "rank"), [(F.cross_entropy, 9), (F.nll_loss, 10)], ids=["cross-entropy", "nll"]
)  # fmt: skip
def test_ranks_of_losses_over_ten_classes(function: object, rank: int) -> None:
    z, target = with_graph(torch.randn(5, 10).log_softmax(1)), torch.zeros(5, dtype=torch.long)
    call = loss_call(function, (z, target), {}, None)
    assert call.rank("exact", 1) == rank
    assert call.rank("mc", 3) == 3
    assert call.rank("empirical", 3) == 1
    assert call.root("exact", 1, None)[0].shape == (rank, 5, 10)


@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("function", [F.cross_entropy, F.nll_loss], ids=["cross-entropy", "nll"])
def test_a_batch_that_is_all_ignored_has_no_curvature(kind: str, reduction: str, function: object) -> None:
    z, target = with_graph(torch.randn(2, 3, 2).log_softmax(1)), torch.full((2, 2), -100)
    call = loss_call(function, (z, target), {"reduction": reduction}, None)
    assert not call.root(kind, 2, None)[0].any()  # type: ignore[arg-type]


def test_the_classes_of_a_divergence_are_those_of_the_log_softmax() -> None:
    a, target = torch.randn(2, 3, 3, requires_grad=True), torch.rand(2, 3, 3)
    for dim in (0, 1, 2, -1):
        call = loss_call(F.kl_div, (a.log_softmax(dim), target), {"reduction": "sum"}, None)
        assert call.element_dims == ((dim % 3,),)
    # Where z has another history its values decide.
    call = loss_call(F.kl_div, (a.log_softmax(-1) * 1, target), {"reduction": "sum"}, None)
    assert call.element_dims == ((2,),)


def test_a_subclass_that_keeps_the_forward_is_known() -> None:
    class Named(nn.MSELoss):
        weight = 3.0  # of its own, not torch's

    call = loss_call(Named(), (with_graph(torch.randn(4, 2)), torch.randn(4, 2)), {}, None)
    torch.testing.assert_close(call.root("exact", 1, None)[0], torch.full((1, 4, 2), 0.5))


def test_without_a_graph_there_are_no_outputs() -> None:
    call = loss_call(nn.MSELoss(), (torch.randn(4, 2), torch.randn(4, 2)), {}, None)
    assert call.outputs == call.element_dims == call.root("exact", 1, None) == ()
    assert call.element_shape == (4, 2)
