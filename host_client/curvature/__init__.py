"""The curvature of a model's loss, as an operator that a device or a solver takes."""

from host_client.curvature.capture import Capture, Criteria
from host_client.curvature.errors import (
    CurvatureApproximation,
    CurvatureFallback,
    CurvatureMismatch,
    CurvatureTooLarge,
    Diverged,
    UnsupportedCriterion,
    UnsupportedLayer,
    UnsupportedProcessGroup,
)
from host_client.curvature.gradients import GradScaler
from host_client.curvature.linearise import Check
from host_client.curvature.losses import Kind, PerSampleLoss
from host_client.curvature.trained import trained_parameters

__all__ = [
    "Capture",
    "Check",
    "Criteria",
    "CurvatureApproximation",
    "CurvatureFallback",
    "CurvatureMismatch",
    "CurvatureTooLarge",
    "Diverged",
    "GradScaler",
    "Kind",
    "PerSampleLoss",
    "UnsupportedCriterion",
    "UnsupportedLayer",
    "UnsupportedProcessGroup",
    "trained_parameters",
]
