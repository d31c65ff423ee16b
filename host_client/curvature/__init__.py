"""The curvature of a model's loss, as an operator that a device or a solver takes."""

from host_client.curvature.capture import Capture
from host_client.curvature.errors import CurvatureTooLarge, UnsupportedCriterion, UnsupportedLayer

__all__ = ["Capture", "CurvatureTooLarge", "UnsupportedCriterion", "UnsupportedLayer"]
