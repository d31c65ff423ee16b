"""Errors and warnings of the curvature capture.

A message states the reason, then after the last semicolon the remedy. `tools/curvature_page.py` makes the tables of
docs/curvature.md from the messages at the places where they are raised.
"""

from __future__ import annotations

from typing import ClassVar

from host_client.curvature.estimate import Estimate


class UnsupportedLayer(ValueError):
    """A layer, or a use of it, whose Jacobian rows are not known.

    Attributes:
        path: dotted path of the layer in the model; empty for the model itself.
    """

    remedy: ClassVar[str] = "do what the message says about the layer, or leave its parameters to Adam with `groups`"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"layer {path!r} {reason}" if path else f"the model {reason}")
        self.path = path


class UnsupportedCriterion(ValueError):
    """A loss, or an option of it, whose curvature is not known.

    Attributes:
        field: the option, for instance ``"label_smoothing"``.
    """

    remedy: ClassVar[str] = 'use a loss of the table in curvature.md, a `PerSampleLoss`, or `curvature="empirical"`'

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"criterion.{field} {reason}" if field else f"the criterion {reason}")
        self.field = field


class UnsupportedProcessGroup(RuntimeError):
    """A model that several processes train: gradients are averaged over them, and the curvature is not.

    Attributes:
        ranks: number of processes.
    """

    remedy: ClassVar[str] = "train in one process, with batches as large as those of all processes together"

    def __init__(self, ranks: int) -> None:
        super().__init__(
            f"a process group of {ranks} ranks is active: its ranks average their gradients, while each would use the "
            "curvature of its own batch, so that the replicas would drift apart; train in one process with batches as "
            "large as those of all ranks together, or destroy the process group"
        )
        self.ranks = ranks


class CurvatureTooLarge(ValueError):
    """A curvature for which memory, or a device's cells, do not suffice; choose one of the settings in the message.

    Nothing has been reserved for it. Each setting in the message has been found to fit by counting again.

    Attributes:
        estimate: the bytes that it would take.
    """

    remedy: ClassVar[str] = "use one of the settings in the message: each was found to fit by counting again"

    def __init__(self, message: str, estimate: Estimate) -> None:
        super().__init__(message)
        self.estimate = estimate


class Diverged(FloatingPointError):
    """A tensor of a step holds NaN or infinity; parameters and momentum are as they were before the step.

    A loss and a gradient are checked before anything is sent to a device.

    Attributes:
        step: number of the step, from 1.
        tensor: what is not finite, for instance ``"gradient of 'conv1.weight'"``.
    """

    remedy: ClassVar[str] = (
        "check that the inputs are finite; lower lr, raise damping or set trust_region; restart from a checkpoint"
    )

    def __init__(self, step: int, tensor: str) -> None:
        super().__init__(step, tensor)
        self.step, self.tensor = step, tensor

    def __str__(self) -> str:
        return (
            f"step {self.step}: the {self.tensor} is not finite; check that inputs and loss are, and if so training "
            "has diverged: lower lr, raise damping or bound the steps with trust_region, and restart from a checkpoint"
        )


class CurvatureMismatch(RuntimeError):
    """A factor whose rows are not those of the graph that it was read from.

    Attributes:
        path: dotted path of the parameter.
    """

    remedy: ClassVar[str] = (
        "do what the message says; if it names a fault of the capture, report it and use another `curvature`"
    )

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"parameter {path!r} {reason}")
        self.path = path


class CurvatureFallback(UserWarning):
    """A parameter whose Jacobian rows cost a backward pass for each column and sample."""

    remedy: ClassVar[str] = "expect slower steps, or write the model with a function of the table in curvature.md"


class CurvatureApproximation(UserWarning):
    """An F that is approximate on purpose; the message names what is left out."""

    remedy: ClassVar[str] = "read what is left out, and decide whether that is acceptable"
