"""What the curvature capture cannot do, said before it would be done wrongly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from host_client.curvature.memory import Estimate


class UnsupportedLayer(ValueError):
    """A layer, or the way it is used, that no exact Jacobian rows are known for here.

    Attributes:
        path: dotted path of the layer in the model; empty for the model itself.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"layer {path!r} {reason}" if path else f"the model {reason}")
        self.path = path


class UnsupportedCriterion(ValueError):
    """A loss, or an option of it, whose curvature is not known here.

    Attributes:
        field: the option, for instance ``"label_smoothing"``.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"criterion.{field} {reason}" if field else f"the criterion {reason}")
        self.field = field


class CurvatureTooLarge(ValueError):
    """A curvature that takes more memory, or more cells, than there are; nothing has been reserved for it.

    Attributes:
        estimate: what it would take.
    """

    def __init__(self, message: str, estimate: Estimate) -> None:
        super().__init__(message)
        self.estimate = estimate


class CurvatureFallback(UserWarning):
    """A parameter is used by a function that no Jacobian rows are known for; they come at a higher cost."""
