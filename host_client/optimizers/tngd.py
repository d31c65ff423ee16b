"""Thermodynamic natural gradient descent: the linear system is solved by a device that relaxes towards its solution."""

from __future__ import annotations

from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

from host_client.curvature import GradScaler
from host_client.links.base import Capacity
from host_client.optimizers.base import Curvature, NaturalGradient, at_least_zero
from spu_link.operators import Operator
from spu_link.precision import PRECISIONS, Precision
from spu_link.program import Reading, StartPolicy


class Solver(Protocol):
    """What `TNGD` asks of a session: one program, left to run, and a reading."""

    @property
    def capacity(self) -> Capacity:
        """What the device can hold."""
        ...

    def solve(
        self,
        operator: Operator,
        drive: Tensor,
        *,
        analog_time: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | Tensor = "keep",
        precision: Precision | None = None,
        not_before: float | None = None,
    ) -> Reading:
        """The state `analog_time` after a program has taken hold, which it does not do before `not_before`."""
        ...


class TNGD(NaturalGradient):
    """Natural gradient descent with g̃ read from a stochastic processing unit (arXiv 2405.13817).

    At each step the device's cells follow dx = −((F + λI) x − ∇ℓ) ds + √(2κ₀) dW for the analog time t, and g̃ is what
    is read then. With start ``"drive"``, t = 0 is gradient descent and t → ∞ is natural gradient descent. Between a
    reading and the next program the device goes on under the old one, for at least the delay.

    Args:
        model: what is trained; for the restrictions see `Capture`.
        criterion: the loss; likewise.
        session: the device, such as a session of ``host_client.connect``.
        lr: learning rate η ≥ 0.
        damping: λ ≥ 0.
        analog_time: t ≥ 0, in units of the device's τ.
        delay: t_d ≥ 0, in τ: least time between a reading and the moment the next program takes hold.
        noise: κ₀ ≥ 0.
        momentum: β in [0, 1), as in `torch.optim.SGD`, applied to the readings.
        start: where the cells start: ``"keep"``, from ∇ℓ at the first step and then from where they stand, as in the
            paper; or ``"drive"``, always from ∇ℓ.
        precision: how the curvature travels to the device: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int16"``,
            or None, as it is. 16 bits halve the upload; ``"int16"`` is the most accurate of them.
        curvature, samples, grad_scaler: see `NaturalGradient`.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range.

    Note:
        The state dictionary holds the last reading. After ``load_state_dict``, or when `session` is replaced, what the
        device holds says nothing about this run, so with ``start="keep"`` the next program starts from that reading.

    Attributes:
        last_reading: the reading of the last step taken with this session; None before the first one.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        session: Solver,
        *,
        lr: float,
        damping: float,
        analog_time: float,
        delay: float = 0.0,
        noise: float = 0.0,
        momentum: float = 0.0,
        start: StartPolicy = "keep",
        precision: Precision | None = None,
        curvature: Curvature = "exact",
        samples: int = 1,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        at_least_zero("analog time", analog_time)
        at_least_zero("delay", delay)
        at_least_zero("noise", noise)
        if start not in get_args(StartPolicy):
            raise ValueError(f"Invalid start: {start!r}; it must be 'keep' or 'drive'")
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"Invalid precision: {precision!r}; it must be one of {', '.join(PRECISIONS)}, or None")
        super().__init__(
            model,
            criterion,
            lr=lr,
            damping=damping,
            analog_time=analog_time,
            delay=delay,
            noise=noise,
            momentum=momentum,
            start=start,
            precision=precision,
            curvature=curvature,
            samples=samples,
            grad_scaler=grad_scaler,
        )
        self.session = session

    @property
    def session(self) -> Solver:
        """The device; may be replaced, for instance after a session has expired."""
        return self._session

    @session.setter
    def session(self, session: Solver) -> None:
        self._session = session
        self.last_reading: Reading | None = None
        if self.capture is not None:
            precision = self.hyperparameters.get("precision")
            itemsize = None if precision is None else PRECISIONS[precision].itemsize
            self.capture.bound_for(session.capacity, itemsize=itemsize)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take hyperparameters, momentum and the last reading from a state dictionary of this class."""
        super().load_state_dict(state_dict)
        self.last_reading = None

    def _solve(self, operator: Operator, drive: Tensor) -> Tensor:
        group = self.hyperparameters
        last = self.last_reading
        reading = self.session.solve(
            operator,
            drive,
            analog_time=group["analog_time"],
            damping=group["damping"],
            noise=group["noise"],
            start=self._start(),
            precision=group.get("precision"),  # absent in the state dictionaries of earlier versions
            not_before=None if last is None else last.time + group["delay"],
        )
        self.last_reading = reading
        parameters: list[Tensor] = group["params"]
        for parameter, part in zip(parameters, reading.value.split([p.numel() for p in parameters]), strict=True):
            self.state[parameter]["reading"] = part.view_as(parameter)
        return reading.value

    def _start(self) -> StartPolicy | Tensor:
        group = self.hyperparameters
        states = [self.state[parameter] for parameter in group["params"]]
        if group["start"] == "drive" or not all("reading" in state for state in states):
            return "drive"
        if self.last_reading is None:
            return torch.cat([state["reading"].flatten() for state in states])
        return "keep"
