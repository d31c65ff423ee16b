import pytest
import torch
from torch import Tensor, nn

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses import check_criterion, loss_columns, loss_root


class Focal(nn.CrossEntropyLoss):
    """A cross-entropy that computes something else."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Twice the loss."""
        return 2 * super().forward(input, target)


def _patched() -> nn.Module:
    criterion = nn.MSELoss()
    criterion.forward = lambda input, target: input.sum()  # type: ignore[method-assign]
    return criterion


@pytest.mark.parametrize(
    ("criterion", "field", "message"),
    [
        (nn.NLLLoss(), "", "the criterion is NLLLoss.*use one of nn.CrossEntropyLoss, nn.BCE.*an operator of your own"),
        (Focal(), "", "the criterion is Focal, whose curvature is not known.*a forward that is torch's"),
        (_patched(), "", "the criterion is MSELoss, whose curvature is not known"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction", r"criterion\.reduction is 'none'.*'mean' or 'sum'"),
        (nn.MSELoss(reduction="none"), "reduction", r"criterion\.reduction is 'none'.*'mean' or 'sum'"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, -2.0])), "weight", r"criterion\.weight has an entry of -2.*≥ 0"),
        (nn.BCEWithLogitsLoss(weight=torch.tensor([-1.0])), "weight", r"criterion\.weight has an entry of -1"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([-1.0])), "pos_weight", r"criterion\.pos_weight has an entry"),
    ],
)
def test_criteria_and_options(criterion: nn.Module, field: str, message: str) -> None:
    with pytest.raises(UnsupportedCriterion, match=message) as refused:
        check_criterion(criterion)
    assert refused.value.field == field


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.MSELoss()])
def test_the_known_ones_pass(criterion: nn.Module) -> None:
    check_criterion(criterion)


@pytest.mark.parametrize(
    ("criterion", "z", "target", "samples", "message"),
    [
        (nn.CrossEntropyLoss(), (4, 1), (4,), 4, r"logits of shape \(4, 1\).*at least two classes"),
        (nn.CrossEntropyLoss(), (3,), (), 1, r"logits of shape \(3,\).*\(samples, classes, …\)"),
        (nn.CrossEntropyLoss(), (7, 3), (7,), 2, r"shape \(7, 3\) for 2 samples.*sample by sample"),
        (
            nn.MSELoss(),
            (4, 1),
            (4,),
            4,
            r"target of shape \(4,\) for an input of shape \(4, 1\); give both",
        ),
        (nn.MSELoss(), (), (), 1, r"shape \(\) for 1 samples"),
    ],
)
def test_shapes(criterion: nn.Module, z: tuple[int, ...], target: tuple[int, ...], samples: int, message: str) -> None:
    given = torch.zeros(target, dtype=torch.long if isinstance(criterion, nn.CrossEntropyLoss) else torch.float32)
    for function in (lambda **kw: loss_root(criterion, torch.zeros(z), given, generator=None, **kw),
                     lambda **kw: loss_columns(criterion, torch.zeros(z), given, **kw)):  # fmt: skip
        with pytest.raises(UnsupportedCriterion, match=message):
            function(samples=samples, kind="exact", draws=1)


def test_another_curvature() -> None:
    with pytest.raises(ValueError, match="curvature 'hessian' is not known; choose 'exact', 'mc' or 'empirical'"):
        loss_root(nn.MSELoss(), torch.ones(2), torch.ones(2), samples=2, kind="hessian", draws=1, generator=None)  # type: ignore[arg-type]
