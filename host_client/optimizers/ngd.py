"""Exact natural gradient descent by the curvature matrix in full: the plainest of the baselines."""

from __future__ import annotations

from torch import Tensor, nn

from host_client.curvature import GradScaler
from host_client.optimizers.base import Curvature, NaturalGradient
from host_client.optimizers.solvers.checks import check_damping, check_size
from host_client.optimizers.solvers.dense import solve_dense
from spu_link.operators import Operator


class NGD(NaturalGradient):
    """Natural gradient descent with g̃ = (F + λI)⁻¹ ∇ℓ from F in full: O(N²) memory and O(N³) time, for small N.

    Args:
        model: what is trained; for the restrictions see `Capture`.
        criterion: the loss; likewise.
        lr: learning rate η ≥ 0.
        damping: λ > 0; F has fewer samples than parameters and cannot be inverted without.
        momentum: β in [0, 1), as in `torch.optim.SGD`, applied to g̃.
        curvature, samples, grad_scaler: see `NaturalGradient`.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range, or when F would take too many bytes.
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
        check_size(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
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
        return solve_dense(operator, drive, self.hyperparameters["damping"])
