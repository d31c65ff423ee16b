"""Thermodynamic natural gradient descent: the linear system is solved by a device that relaxes towards its solution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Protocol, Unpack, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from host_client.links.base import Capacity
from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.options import NaturalGradientOptions
from host_client.optimizers.ranges import COMMON, Ranges, at_least_zero
from host_client.optimizers.schedules import Scheduled
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


class Upload(Protocol):
    """What becomes of an operator that is sent ahead."""

    @property
    def operator(self) -> Operator:
        """What is sent."""
        ...

    def solve(
        self,
        drive: Tensor,
        *,
        analog_time: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | Tensor = "keep",
        not_before: float | None = None,
    ) -> Reading:
        """As `Solver.solve`, with the rest of the program."""
        ...

    def abandon(self) -> None:
        """Break off."""
        ...


@runtime_checkable
class Uploader(Protocol):
    """A session that takes the operator ahead of the rest; `TNGD` uses it where it can."""

    def upload(self, operator: Operator, *, precision: Precision | None = None) -> Upload:
        """Begin to send an operator."""
        ...


class TNGD(NaturalGradient):
    """Natural gradient descent with g̃ read from a stochastic processing unit (arXiv 2405.13817).

    At each step the device's cells follow dx = −((F + λI) x − ∇ℓ) ds + √(2κ₀) dW for the analog time t, and g̃ is what
    is read then. With start ``"drive"``, t = 0 is gradient descent and t → ∞ is natural gradient descent. Between a
    reading and the next program the device goes on under the old one, for at least the delay. The curvature is sent
    ahead while the backward pass runs; it is abandoned when no step follows.

    Args:
        model: what is trained.
        criterion: the loss.
        session: the device, such as a session of ``host_client.connect``.
        analog_time: t ≥ 0, in units of the device's τ.
        delay: t_d ≥ 0, in τ: least time between a reading and the moment the next program takes hold.
        noise: κ₀ ≥ 0.
        start: where the cells start: ``"keep"``, from ∇ℓ at the first step and then from where they stand, as in the
            paper; or ``"drive"``, always from ∇ℓ.
        precision: how the curvature travels to the device: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int16"``,
            or None, as it is. 16 bits halve the upload; ``"int16"`` is the most accurate of them.
        options: see `NaturalGradient`.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range.

    Note:
        The state dictionary holds the last reading. After ``load_state_dict``, or when `session` is replaced, what the
        device holds says nothing about this run, so with ``start="keep"`` the next program starts from that reading.

    Attributes:
        last_reading: the reading of the last step taken with this session; None before the first one.
    """

    ranges: ClassVar[Ranges] = {**COMMON, **dict.fromkeys(("analog_time", "delay", "noise"), at_least_zero)}

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        session: Solver,
        *,
        analog_time: Scheduled,
        delay: Scheduled = 0.0,
        noise: Scheduled = 0.0,
        start: StartPolicy = "keep",
        precision: Precision | None = None,
        **options: Unpack[NaturalGradientOptions],
    ) -> None:
        self._ahead: tuple[Upload, Precision | None] | None = None
        if start not in get_args(StartPolicy):
            raise ValueError(f"Invalid start: {start!r}; it must be 'keep' or 'drive'")
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"Invalid precision: {precision!r}; it must be one of {', '.join(PRECISIONS)}, or None")
        super().__init__(
            model,
            criterion,
            analog_time=analog_time,
            delay=delay,
            noise=noise,
            start=start,
            precision=precision,
            **options,
        )
        self.session = session

    @property
    def session(self) -> Solver:
        """The device; may be replaced, for instance after a session has expired."""
        return self._session

    @session.setter
    def session(self, session: Solver) -> None:
        self._abandon()
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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and what has been sent ahead for them."""
        if self._ahead is not None and self.capture is not None:
            try:
                differentiated = self.capture.operator_of_gradients() is self._ahead[0].operator
            except RuntimeError:
                differentiated = False  # its backward pass is still to come
            if differentiated:
                self._abandon()
        super().zero_grad(set_to_none)

    def _on_operator(self, operator: Operator) -> None:
        """Send the operator while the backward pass runs."""
        self._abandon()
        if isinstance(self._session, Uploader):
            precision = self._precision()
            self._ahead = self._session.upload(operator, precision=precision), precision

    def _abandon(self) -> None:
        """No step will use what has been sent ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead[0].abandon()

    def _precision(self) -> Precision | None:
        precision: Precision | None = self.hyperparameters.get("precision")  # absent in earlier state dictionaries
        return precision

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        operator = self._operator
        assert operator is not None
        group = self.hyperparameters
        last = self.last_reading
        options = {
            "analog_time": group["analog_time"],
            "damping": group["damping"],
            "noise": group["noise"],
            "start": self._start(),
            "not_before": None if last is None else last.time + group["delay"],
        }
        precision = self._precision()
        if self._ahead is not None and self._ahead[0].operator is operator and self._ahead[1] == precision:
            (upload, _), self._ahead = self._ahead, None
            reading = upload.solve(drive, **options)
        else:
            self._abandon()
            reading = self.session.solve(operator, drive, precision=precision, **options)
        self.last_reading = reading
        for parameter, part in self._parts(reading.value).items():
            self.state[parameter]["reading"] = part
        return [reading.value]

    def _start(self) -> StartPolicy | Tensor:
        group = self.hyperparameters
        states = [self.state[parameter] for _, parameter in self._parameters]
        if group["start"] == "drive" or not all("reading" in state for state in states):
            return "drive"
        if self.last_reading is None:
            return torch.cat([state["reading"].flatten() for state in states])
        return "keep"
