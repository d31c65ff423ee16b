"""Optimizers that a study compares on a classifier, and the hyperparameters that are searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from host_client.blocking import Session
from host_client.names import OptimizerName
from host_client.optimizers import NGD, make_optimizer
from host_client.solvers import Info
from spu_link.operators import Operator

LOGARITHMIC = frozenset({"lr", "damping", "trust_region"})
"""Hyperparameters that are searched on a logarithmic scale."""


@dataclass(frozen=True)
class LinearDecay:
    """A schedule that falls from its first value to 0 on a straight line.

    Attributes:
        first: value of the first step.
        steps: number of steps after which it would be 0.
    """

    first: float
    steps: int

    def __call__(self, step: int) -> float:
        """Return the value after so many steps."""
        return self.first * max(0.0, 1.0 - step / self.steps)


@dataclass(frozen=True)
class Method:
    """An optimizer of which some hyperparameters are searched.

    Attributes:
        label: name for people.
        optimizer: name for `make_optimizer`.
        ranges: bounds of the hyperparameters that are searched, by name; ``"beta1"`` is Adam's β₁.
        first: values of the first trial.
        fixed: the other hyperparameters.
    """

    label: str
    optimizer: OptimizerName
    ranges: Mapping[str, tuple[float, float]]
    first: Mapping[str, float]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uses_device(self) -> bool:
        """Whether a device solves its linear systems."""
        return self.optimizer == "tngd"


RATE, DAMPING, REGION = (0.05, 2.0), (0.01, 1.0), (0.003, 0.1)
START = {"lr": 0.5, "damping": 0.1, "trust_region": 0.02}
MONTE_CARLO = {"curvature": "mc", "samples": 4}
DEVICE = {**MONTE_CARLO, "analog_time": 50.0}
NATURAL = {"lr": RATE, "damping": DAMPING, "trust_region": REGION}

METHODS = (
    Method("Adam", "adam", {"lr": (1e-3, 3e-2), "beta1": (0.8, 0.95)}, {"lr": 1e-2, "beta1": 0.9}),
    Method("SGD", "sgd", {"lr": (0.01, 0.5), "momentum": (0.7, 0.95)}, {"lr": 0.1, "momentum": 0.9}),
    Method("NGD-CG", "ngd-cg", NATURAL, START, {**MONTE_CARLO, "iterations": 10}),
    Method("K-FAC", "kfac", NATURAL, START, {"curvature": "mc", "curvature_every": 10}),
    Method("TNGD", "tngd", NATURAL, START, DEVICE),
    Method("TNGD, SPRING", "tngd", {**NATURAL, "spring": (0.5, 0.95)}, {**START, "spring": 0.8}, DEVICE),
    Method(
        "TNGD-Adam",
        "tngd",
        {"lr": (3e-4, 1e-2), "damping": DAMPING},
        {"lr": 1e-3, "damping": 0.1},
        {**DEVICE, "betas": (0.0, 0.0)},
    ),
)
"""Methods that are compared, each with a learning rate that falls to 0 on a straight line.

All but K-FAC and the two of first order have the curvature of four labels drawn for each example. K-FAC has one, and
new factors every tenth step, as its eigenvectors take twenty times as long as a gradient here.
"""


def find_method(label: str) -> Method:
    """Return the method of `METHODS` with that label."""
    return next(method for method in METHODS if method.label == label)


PAPERS = (
    Method("Adam", "adam", {}, {}, {"lr": 1e-3}),
    Method("TNGD", "tngd", {}, {}, {"lr": 0.01, "damping": 0.01, "analog_time": 50.0}),
)
"""Methods of the paper's Fig. 3, with constant learning rates."""


def make_classifier_optimizer(
    method: Method,
    values: Mapping[str, float],
    model: nn.Module,
    criterion: nn.Module,
    *,
    session: Session | None = None,
    decay_steps: int | None = None,
) -> Optimizer:
    """Return a method's optimizer.

    Args:
        method: which.
        values: its hyperparameters that were searched.
        model: what is trained.
        criterion: the loss.
        session: the device, for a method that uses one. Without it, such a method steps along the gradient and does
            all else as it would, which is what the host has to do of a step.
        decay_steps: steps until the learning rate is 0; None for a constant one.
    """
    hyperparameters: dict[str, Any] = {**method.fixed, **values}
    if "beta1" in hyperparameters:
        hyperparameters["betas"] = (hyperparameters.pop("beta1"), 0.999)
    if method.optimizer in ("adam", "sgd"):
        optimizer = make_optimizer(method.optimizer, model, criterion, **hyperparameters)
        if decay_steps is not None:
            scheduler = LambdaLR(optimizer, LinearDecay(1.0, decay_steps))
            optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer
    if decay_steps is not None:
        hyperparameters["lr"] = LinearDecay(hyperparameters["lr"], decay_steps)
    if method.uses_device and session is None:
        del hyperparameters["analog_time"]
        return NGD(model, criterion, solver=_return_drive, **hyperparameters)
    return make_optimizer(method.optimizer, model, criterion, session=session, **hyperparameters)


def _return_drive(operator: Operator, drive: Any, damping: float) -> tuple[Any, Info]:
    return drive, {}
