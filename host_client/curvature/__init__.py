"""The curvature of a model's loss, as an operator that a device or a solver takes."""

from host_client.curvature.capture import Capture
from host_client.curvature.errors import CurvatureFallback, CurvatureTooLarge, UnsupportedCriterion, UnsupportedLayer
from host_client.curvature.gradients import GradScaler
from host_client.curvature.losses import Kind
from host_client.curvature.trained import trained_parameters

__all__ = [
    "Capture",
    "CurvatureFallback",
    "CurvatureTooLarge",
    "GradScaler",
    "Kind",
    "UnsupportedCriterion",
    "UnsupportedLayer",
    "trained_parameters",
]
