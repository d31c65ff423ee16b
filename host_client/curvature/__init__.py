"""The curvature of a model's loss, as an operator that a device or a solver takes."""

from host_client.curvature.capture import Capture, GradScaler, trained_parameters
from host_client.curvature.errors import CurvatureFallback, CurvatureTooLarge, UnsupportedCriterion, UnsupportedLayer
from host_client.curvature.losses import Kind

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
