"""Exact natural gradient descent in sample space: the baseline for large networks."""

from __future__ import annotations

from torch import Tensor, nn

from host_client.curvature import GradScaler
from host_client.optimizers.base import Curvature, NaturalGradient
from host_client.optimizers.solvers.checks import check_damping
from host_client.optimizers.solvers.woodbury import solve_woodbury
from spu_link.operators import FactorOperator, Operator


class NGDWoodbury(NaturalGradient):
    """Natural gradient descent with g̃ = (F + λI)⁻¹ ∇ℓ by the Woodbury identity: O(m²N + m³) time, m = b (d − 1) rows.

    Args:
        model: what is trained; for the restrictions see `Capture`.
        criterion: the loss; likewise.
        lr: learning rate η ≥ 0.
        damping: λ > 0.
        momentum: β in [0, 1), as in `torch.optim.SGD`, applied to g̃.
        curvature, samples, grad_scaler: see `NaturalGradient`.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        *,
        lr: float,
        damping: float,
        momentum: float = 0.0,
        curvature: Curvature = "exact",
        samples: int = 1,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        check_damping(damping)
        super().__init__(
            model,
            criterion,
            lr=lr,
            damping=damping,
            momentum=momentum,
            curvature=curvature,
            samples=samples,
            grad_scaler=grad_scaler,
        )

    def _solve(self, operator: Operator, drive: Tensor) -> Tensor:
        if not isinstance(operator, FactorOperator):
            raise TypeError(
                f"the curvature given is {type(operator).__name__}, and the Woodbury identity needs a factor A of it; "
                "give Rows, LayerRows or another factor, or use NGD"
            )
        return solve_woodbury(operator, drive, self.hyperparameters["damping"])
