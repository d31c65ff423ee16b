import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host_client.curvature.errors import CurvatureApproximation, UnsupportedCriterion
from host_client.curvature.losses import check_criterion, loss_call
from tests.host_client.curvature.losses.problems import MODULES, with_graph


class Twice(nn.CrossEntropyLoss):
    """A cross-entropy that computes something else."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Twice the loss."""
        return 2 * super().forward(input, target)


def _patched() -> nn.Module:
    criterion = nn.MSELoss()
    criterion.forward = lambda input, target: input.sum()  # type: ignore[method-assign]
    return criterion


UNKNOWN = "use one of torch's losses.*derive your own from PerSampleLoss.*curvature='empirical'.*an operator of your"


@pytest.mark.parametrize("kind", ["exact", "mc"])
@pytest.mark.parametrize(
    ("criterion", "field", "message"),
    [
        (nn.CTCLoss(), "", f"the criterion is CTCLoss, whose curvature is not known; {UNKNOWN}"),
        (Twice(), "", "the criterion is Twice, whose curvature is not known.*a forward that is torch's"),
        (_patched(), "", "the criterion is MSELoss, whose curvature is not known"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction", r"criterion\.reduction is 'none'.*'mean' or 'sum'"),
        (nn.MSELoss(reduction="none"), "reduction", r"criterion\.reduction is 'none'.*'mean' or 'sum'"),
        (nn.MSELoss(reduction="batchmean"), "reduction", r"criterion\.reduction is 'batchmean'"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, -2.0])), "weight", r"criterion\.weight has an entry of -2.*≥ 0"),
        (nn.NLLLoss(weight=torch.tensor([1.0, -2.0])), "weight", r"criterion\.weight has an entry of -2"),
        (nn.BCEWithLogitsLoss(weight=torch.tensor([-1.0])), "weight", r"criterion\.weight has an entry of -1"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([-1.0])), "pos_weight", r"criterion\.pos_weight has an entry"),
        (nn.L1Loss(), "", "is the L1 loss, whose Hessian is zero; use SmoothL1Loss or HuberLoss, or curv.*'empirical'"),
        (F.l1_loss, "", "is the L1 loss, whose Hessian is zero"),
        (nn.SmoothL1Loss(beta=0.0), "beta", r"criterion\.beta is the L1 loss"),
    ],
)
def test_criteria_and_options(criterion: Any, field: str, message: str, kind: Any) -> None:
    with pytest.raises(UnsupportedCriterion, match=message) as refused:
        check_criterion(criterion, kind)
    assert refused.value.field == field


@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
def test_the_known_ones_pass(kind: Any) -> None:
    for function, module in MODULES.items():
        if module is not nn.L1Loss or kind == "empirical":
            check_criterion(function, kind)
            check_criterion(module(), kind)


@pytest.mark.parametrize("criterion", [nn.CTCLoss(), Twice(), _patched(), nn.L1Loss()])
def test_any_module_has_an_empirical_fisher(criterion: nn.Module) -> None:
    check_criterion(criterion, "empirical")


@pytest.mark.parametrize("criterion", [3, lambda z, t: z.sum(), functools.partial(F.mse_loss, reduction="sum")])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_anything_else_is_of_another_type(criterion: Any, kind: Any) -> None:
    with pytest.raises(TypeError, match=r"Invalid criterion: a .*nn.CrossEntropyLoss\(\).*F.cross_entropy.*PerSampleL"):
        check_criterion(criterion, kind)


@pytest.mark.parametrize("kind", ["exact", "mc"])
@pytest.mark.parametrize("beta", [None, 0.0])
def test_a_call_of_a_piecewise_linear_loss(beta: float | None, kind: Any) -> None:
    z = (with_graph(torch.randn(4)), torch.randn(4))
    call = loss_call(F.l1_loss, z, {}, None) if beta is None else loss_call(F.smooth_l1_loss, z, {"beta": beta}, None)
    for ask in (lambda: call.rank(kind, 1), lambda: call.root(kind, 1, None)):
        with pytest.raises(UnsupportedCriterion, match="Hessian is zero"):
            ask()
    assert call.root("empirical", 1, None)[0].shape == (1, 4)


@pytest.mark.parametrize("name", ["size_average", "reduce"])
def test_deprecated_arguments_of_functions(name: str) -> None:
    with pytest.raises(UnsupportedCriterion, match=f"{name} is deprecated.*reduction='mean'"):
        loss_call(F.mse_loss, (with_graph(torch.ones(3)), torch.ones(3)), {name: True}, None)
    with pytest.raises(UnsupportedCriterion, match="reduction is 'none'"):
        loss_call(F.mse_loss, (with_graph(torch.ones(3)), torch.ones(3)), {"reduction": "none"}, None)


def test_negative_class_weights_of_functions() -> None:
    weight = torch.ones(3)
    args = (with_graph(torch.randn(4, 3)), torch.zeros(4, dtype=torch.long), weight)
    loss_call(F.cross_entropy, args, {}, None)
    weight[1] = -1
    with pytest.raises(UnsupportedCriterion, match="weight has an entry of -1"):
        loss_call(F.cross_entropy, args, {}, None)


def test_negative_weights_of_outputs_count_as_zero_with_one_warning() -> None:
    weight = torch.tensor([-1.0, 2.0])
    call = loss_call(F.binary_cross_entropy_with_logits, (with_graph(torch.zeros(2)), torch.ones(2), weight), {}, None)
    with pytest.warns(CurvatureApproximation, match="binary_cross_entropy_with_logits is not convex"):
        (columns,) = call.root("exact", 1, None)
    torch.testing.assert_close(columns, torch.tensor([[0.0, 0.5]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call.root("mc", 1, None)


@pytest.mark.parametrize(
    ("criterion", "z", "target", "message"),
    [
        (nn.CrossEntropyLoss(), (4, 1), (4,), r"input of shape \(4, 1\).*at least two classes"),
        (nn.NLLLoss(), (1,), (), r"input of shape \(1,\).*\(samples, classes, …\)"),
        (nn.MSELoss(), (4, 1), (4,), r"target of shape \(4,\) for an input of shape \(4, 1\); give both"),
        (nn.KLDivLoss(), (4, 2), (2,), r"target of shape \(2,\) for an input of shape \(4, 2\); give both"),
    ],
)
def test_shapes(criterion: nn.Module, z: tuple[int, ...], target: tuple[int, ...], message: str) -> None:
    classes = isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss))
    given = torch.zeros(target, dtype=torch.long if classes else torch.float32)
    with pytest.raises(UnsupportedCriterion, match=message):
        loss_call(criterion, (with_graph(torch.zeros(z)), given), {}, None)


def test_a_variance_of_another_shape_that_the_model_predicts() -> None:
    z, var = with_graph(torch.zeros(4, 2)), with_graph(torch.ones(4, 1))
    with pytest.raises(UnsupportedCriterion, match=r"var is differentiated and has shape \(4, 1\).*expand it to the"):
        loss_call(nn.GaussianNLLLoss(), (z, torch.zeros(4, 2), var), {}, None)


def test_targets_with_a_graph() -> None:
    z, target = with_graph(torch.zeros(4, 2)), with_graph(torch.ones(4, 2))
    call = loss_call(nn.BCEWithLogitsLoss(), (z, target), {}, None)
    with pytest.raises(UnsupportedCriterion, match=r"target has a graph, and the curvature 'exact' in it.*detach it"):
        call.root("exact", 1, None)
    assert len(call.root("empirical", 1, None)) == 2


@pytest.mark.parametrize("kind", ["exact", "mc"])
@pytest.mark.parametrize("function", [F.nll_loss, F.kl_div])
def test_log_probabilities_that_do_not_sum_to_one(function: Any, kind: Any) -> None:
    z = torch.randn(4, 3)
    target = torch.tensor([0, 1, -100, 2]) if function is F.nll_loss else torch.rand(4, 3)
    with pytest.raises(UnsupportedCriterion, match=r"exp\(\) does not sum to 1 along dimension 1.*apply log_softmax"):
        loss_call(function, (with_graph(z), target), {"reduction": "sum"}, None).rank(kind, 1)
    loss_call(function, (with_graph(z), target), {"reduction": "sum"}, None).root("empirical", 1, None)
    for dtype in (torch.float64, torch.bfloat16):
        normalised = with_graph(z.to(dtype).log_softmax(1))
        if function is F.nll_loss:
            normalised = normalised + torch.tensor([[0], [0], [3], [0]], dtype=dtype)  # ignored
        loss_call(function, (normalised, target), {"reduction": "sum"}, None).root(kind, 1, None)


def test_another_curvature() -> None:
    call = loss_call(nn.MSELoss(), (with_graph(torch.ones(2)), torch.ones(2)), {}, None)
    for ask in (lambda: call.root("hessian", 1, None), lambda: check_criterion(nn.MSELoss(), "hessian")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="curvature 'hessian' is not known; choose 'exact', 'mc' or 'empirical'"):
            ask()
