"""What every natural-gradient optimizer does: capture, gradient, solve, descend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias, overload
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from host_client.curvature import Capture, GradScaler, Kind, trained_parameters
from spu_link.operators import Operator

Curvature: TypeAlias = Kind | Callable[[], Operator]
"""Which curvature is captured, or what gives one."""


class NaturalGradient(torch.optim.Optimizer, ABC):
    """θ ← θ − η g̃ with g̃ a solution of (F + λI) g̃ = ∇ℓ, or an estimate of it; how it is found is up to the subclass.

    F is the curvature of the losses that the gradients are those of (see `Capture`, whose restrictions on model and
    criterion hold here). The loop is the ordinary one, with or without a closure; gradients of several backward passes
    may be added up before a step. There is one parameter group, because F is one matrix: the parameters of `model`
    that require grad when the optimizer is made. If `step` raises, parameters, momentum and gradients are as they
    were, and it can be called again.

    Args:
        model: what is trained.
        criterion: the loss.
        lr: learning rate η ≥ 0.
        damping: λ ≥ 0, with F the curvature of the mean (or sum) loss over the batch.
        momentum: β in [0, 1), as in `torch.optim.SGD`, applied to g̃: u ← β u + g̃, θ ← θ − η u.
        curvature: ``"exact"``, ``"mc"`` or ``"empirical"``, see `Capture`; or a function that is called at each step
            and gives F itself, an operator of the N trained parameters in their order: then nothing is captured.
        samples: labels drawn for each sample when the curvature is ``"mc"``.
        grad_scaler: the scaler of the losses, if the gradients of several backward passes are added up under one.
        hyperparameters: further ones of the subclass, for the parameter group.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range.

    Attributes:
        capture: the hooks on model and criterion; ``capture.close()`` removes them when training is over. None when
            the curvature is given.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        *,
        lr: float,
        damping: float,
        momentum: float,
        curvature: Curvature = "exact",
        samples: int = 1,
        grad_scaler: GradScaler | None = None,
        **hyperparameters: Any,
    ) -> None:
        at_least_zero("learning rate", lr)
        at_least_zero("damping", damping)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"Invalid momentum: {momentum}; it must be at least 0 and less than 1")
        self._parameters = trained_parameters(model)
        self.capture: Capture | None = None
        if callable(curvature):
            self._given = curvature
        else:
            complete = WeakMethod(self._on_operator)  # the model's hooks do not keep the optimizer alive
            self.capture = Capture(
                model,
                criterion,
                curvature=curvature,
                samples=samples,
                on_operator=lambda operator: _tell(complete, operator),
                grad_scaler=grad_scaler,
            )
        defaults = {"lr": lr, "damping": damping, "momentum": momentum, **hyperparameters}
        super().__init__([parameter for _, parameter in self._parameters], defaults)

    def _on_operator(self, operator: Operator) -> None:
        """A curvature is complete, and its backward pass still to come; `_solve` may or may not ask for it."""

    @abstractmethod
    def _solve(self, operator: Operator, drive: Tensor) -> Tensor:
        """g̃ of shape (N,) for F = `operator` and ∇ℓ = `drive`."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The parameter group: learning rate, damping and so on, by name; changes hold from the next step on."""
        return self.param_groups[0]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the parameters of the model; a second group is refused.

        Raises:
            ValueError: for a second group.
        """
        if self.param_groups:
            raise ValueError(f"{type(self).__name__} has one parameter group: the curvature couples all parameters")
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and with them the record of which losses they are those of."""
        super().zero_grad(set_to_none)
        if self.capture is not None:
            self.capture.forget_gradients()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the natural gradient.

        Args:
            closure: evaluates the model, computes gradients and returns the loss; without one, that has been done.

        Returns:
            The closure's loss.

        Raises:
            RuntimeError: when there was no training forward pass with a loss and a backward pass through it since the
                last step, or when a parameter has no gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        operator = self._given() if self.capture is None else self.capture.operator_of_gradients()
        drive = self._drive()
        self._descend(self._solve(operator, drive).to(drive))
        if self.capture is not None:
            self.capture.forget_gradients()
        return loss

    def _drive(self) -> Tensor:
        gradients = []
        for path, parameter in self._parameters:
            if parameter.grad is None:
                raise RuntimeError(f"parameter {path!r} has no gradient: call loss.backward() before step()")
            gradients.append(parameter.grad.flatten())
        return torch.cat(gradients)

    def _descend(self, solution: Tensor) -> None:
        group = self.hyperparameters
        parameters: list[Tensor] = group["params"]
        directions = [
            part.view_as(parameter)
            for part, parameter in zip(solution.split([p.numel() for p in parameters]), parameters, strict=True)
        ]
        if group["momentum"]:
            directions = [
                self._averaged(p, direction, group["momentum"])
                for p, direction in zip(parameters, directions, strict=True)
            ]
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    def _averaged(self, parameter: Tensor, direction: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = direction.clone()
        else:
            state["momentum_buffer"].mul_(momentum).add_(direction)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _tell(method: WeakMethod[Any], operator: Operator) -> None:
    called = method()
    if called is not None:
        called(operator)


def at_least_zero(name: str, value: float) -> None:
    """Refuse a hyperparameter that is negative or not a number.

    Raises:
        ValueError: naming it.
    """
    if not value >= 0.0:
        raise ValueError(f"Invalid {name}: {value}; it must be at least 0")
