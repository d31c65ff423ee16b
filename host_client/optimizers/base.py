"""What every natural-gradient optimizer does: capture, gradient, solve, descend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, overload
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from host_client.curvature import Capture, GradScaler, Kind, trained_parameters
from host_client.optimizers.groups import check_fits, check_frozen, make_groups, shapes_of
from host_client.optimizers.levenberg_marquardt import LevenbergMarquardt, Trial
from host_client.optimizers.options import Curvature
from host_client.optimizers.ranges import COMMON, Ranges, at_least_one, check_together
from host_client.optimizers.rules import update
from host_client.optimizers.saved import restored_operator, saved_operator
from host_client.optimizers.schedules import Scheduled, Schedules
from host_client.optimizers.trust_region import scale
from host_client.optimizers.vectors import check_dense, gradient_of, parts_of, rates_of
from spu_link.operators import Operator


class NaturalGradient(torch.optim.Optimizer, ABC):
    """θ ← θ − η g̃ with g̃ a solution of (F + λI) g̃ = ∇ℓ, or an estimate of it; how it is found is up to the subclass.

    F is the curvature of the losses that the gradients are those of (see `Capture`, whose restrictions on model and
    criterion hold here). The loop is the ordinary one, with or without a closure; gradients of several backward passes
    may be added up before a step. If `step` raises, parameters, momentum and gradients are as they were, and it can be
    called again.

    Hyperparameters that are `Scheduled` are numbers, or functions of the number of steps taken that give one. What they
    are now stands in ``param_groups``, where it may be changed, by torch's LR schedulers for instance.

    Args:
        model: what is trained: its parameters that require grad when the optimizer is made. Those that are frozen stay
            so; to train them, make a new optimizer.
        criterion: the loss.
        lr: learning rate η ≥ 0.
        damping: λ ≥ 0, with F the curvature of the mean (or sum) loss over the batch.
        momentum: β in [0, 1), as in `torch.optim.SGD`, applied to g̃: u ← β u + g̃, θ ← θ − η u.
        betas: (β₁, β₂), each in [0, 1), for Adam's rule on g̃ in the place of momentum; (0, 0) is TNGD-Adam of arXiv
            2405.13817.
        eps: ε > 0 of Adam's rule.
        weight_decay: w ≥ 0, decoupled: before each update θ ← θ − η w θ. It is no part of the loss or of F.
        groups: parameters with hyperparameters of their own, ``{"params": …, "lr": …, "weight_decay": …}``, also
            ``"momentum"`` or, if the optimizer has them, ``"betas"`` and ``"eps"``. With ``"adam": True`` a group is
            left to Adam on the plain gradient, by default with Adam's own ``lr``, ``betas`` and ``eps``, and is no part
            of F. The parameters that no group names are the first group, which may be empty; damping and what else is
            not of a group lives there.
        curvature: ``"exact"``, ``"mc"`` or ``"empirical"``, see `Capture`; or a function that is called when a step
            needs F and gives it, an operator of the N parameters with a natural gradient in the order of
            ``model.parameters()``: then nothing is captured.
        samples: labels drawn for each sample when the curvature is ``"mc"``.
        curvature_every: k ≥ 1: each k-th step has a new F, the first one too; the steps between use the last one, and
            their forward passes are not captured.
        grad_scaler: the scaler of the losses, if the gradients of several backward passes are added up under one.
        trust_region: δ > 0: each g̃ is shortened where −η g̃ would be longer than ½ ΔᵀFΔ = δ, see `scale`; None for no
            bound. Momentum and weight decay come on top. Not with betas: Adam's rule does not go along g̃.
        adapt_damping: how λ follows the success of the quadratic model, from `damping` on; None for not at all. Each
            step then needs a closure, which with the same random numbers has to give the same loss.
        hyperparameters: further ones of the subclass, for the first group.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range, or groups that do not fit the model.

    Attributes:
        capture: the hooks on model and criterion; ``capture.close()`` removes them when training is over. None when
            the curvature is given.
        counts: what happened how often.
        steps: how many steps have been taken.
    """

    ranges: ClassVar[Ranges] = COMMON
    """The range of each hyperparameter; subclasses add theirs, which makes them known."""

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        *,
        damping: Scheduled,
        lr: Scheduled = 1.0,
        momentum: Scheduled = 0.0,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        groups: Sequence[Mapping[str, Any]] | None = None,
        curvature: Curvature = "exact",
        samples: int = 1,
        curvature_every: int = 1,
        grad_scaler: GradScaler | None = None,
        trust_region: Scheduled | None = None,
        adapt_damping: LevenbergMarquardt | None = None,
        **hyperparameters: Any,
    ) -> None:
        for name in hyperparameters.keys() - self.ranges.keys():
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}")
        at_least_one("curvature_every", curvature_every)
        check_together(betas, momentum=momentum, trust_region=trust_region)
        if adapt_damping is not None and callable(damping):
            raise ValueError("Invalid damping: a schedule; with adapt_damping it must be a number, to start from")
        rule = {"momentum": momentum} if betas is None else {"betas": betas, "eps": eps}
        shared = {"lr": lr, "weight_decay": weight_decay, **rule}
        made = make_groups(model, groups, shared, {"damping": damping, "trust_region": trust_region, **hyperparameters})
        self._schedules = Schedules(made)
        self._schedules.apply(made, 0, self.ranges)
        natural = [p for group in made if not group["adam"] for p in group["params"]]
        self._parameters = trained_parameters(model, natural)
        self._check_size(sum(p.numel() for p in natural))
        chosen = {id(p) for p in natural}
        self._left = [(path, p) for path, p in trained_parameters(model) if id(p) not in chosen]
        self._frozen = [(path, p) for path, p in model.named_parameters() if not p.requires_grad]
        self._whole = False
        super().__init__(made, {name: made[0][name] for name in shared})
        self._whole = True
        self.counts: Counter[str] = Counter()
        self.steps = 0
        self.curvature_every = curvature_every
        self._options = {
            "curvature": curvature,
            "samples": samples,
            "curvature_every": curvature_every,
            "adapt_damping": adapt_damping,
        }
        self.adapt_damping = adapt_damping
        self._model = model
        self._operator: Operator | None = None
        self.capture: Capture | None = None
        if callable(curvature):
            self._given = curvature
        else:
            self.capture = self._capturing(model, criterion, natural, curvature, samples, grad_scaler)

    def _capturing(
        self,
        model: nn.Module,
        criterion: nn.Module,
        natural: Sequence[nn.Parameter],
        kind: Kind,
        samples: int,
        grad_scaler: GradScaler | None,
    ) -> Capture:
        """What makes the curvature of this kind of the losses that gradients are those of."""
        complete = WeakMethod(self._on_operator)  # the model's hooks do not keep the optimizer alive
        return Capture(
            model,
            criterion,
            curvature=kind,
            samples=samples,
            on_operator=lambda operator: _tell(complete, operator),
            grad_scaler=grad_scaler,
            parameters=natural,
        )

    def _on_operator(self, operator: Operator) -> None:
        """A curvature is complete, and its backward pass still to come; `_directions` may or may not ask for it."""

    @abstractmethod
    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        """The directions g̃ of a step, each of shape (N,), that the parameters go along one after the other.

        Args:
            operator: F, if this step has a new one; else None, and the last one is ``self._operator``.
            drive: ∇ℓ, shape (N,).
        """

    def _check_size(self, parameters: int) -> None:
        """Refuse so many parameters with a natural gradient, before anything has been done; here none are too many."""

    def _curvature_due(self) -> bool:
        """Whether the step to come has a curvature of its own; until then forward passes are captured."""
        return self.steps % self.curvature_every == 0 or self._operator is None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The first parameter group: learning rate, damping and so on, by name; changes hold from the next step on."""
        return self.param_groups[0]

    def __repr__(self) -> str:
        """All hyperparameters: those of each group as they are now, then those of no group."""
        shown = "".join(f"    {name}: {value}\n" for name, value in self._options.items())
        return f"{super().__repr__()[:-1]}\nOf all groups\n{shown})"

    def __getstate__(self) -> NoReturn:
        """Refuse to be copied or pickled.

        Raises:
            TypeError: saying what to do instead.
        """
        raise TypeError(
            f"{type(self).__name__} is hooked to its model and cannot be copied; make one for the copy of the model, "
            "and give it the state: other.load_state_dict(optimizer.state_dict())"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the groups that the optimizer is made with; later ones are refused.

        Raises:
            ValueError: for a group that comes later.
        """
        if self._whole:
            raise ValueError(
                f"{type(self).__name__} takes no further parameter groups, the curvature couples all parameters: make "
                "a new one with groups=[…]"
            )
        super().add_param_group(param_group)
        if param_group["adam"]:
            param_group.pop("momentum", None)  # torch has filled in what is of the other groups

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
                last step, when a parameter has no gradient, or when one has been unfrozen; without a closure, when
                `adapt_damping` needs one.
            ValueError: when a hyperparameter has left its range.
            FloatingPointError: when no trust region can bound the step, see `scale`.

        What the closure raises when `adapt_damping` calls it once more comes after the step has been taken.
        """
        trial = None if self.adapt_damping is None else self.adapt_damping.trial(self.steps, self._model, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        directions = self._solved()
        plain = self._plain()
        if trial is not None:
            trial.before(self.param_groups)
        for group in self.param_groups:
            for along in [plain] if group["adam"] else directions:
                update(group, along, self.state)
        if trial is not None:
            assert self._operator is not None
            trial.after(self._operator, [parameter for _, parameter in self._parameters])
        self._taken()
        self.counts["updates"] += len(directions)
        if trial is not None:
            self._adapt(trial, loss)
        return loss

    def _adapt(self, trial: Trial, loss: float | None) -> None:
        assert self.adapt_damping is not None
        assert loss is not None
        with _paused(self.capture):
            found = trial.ratio(loss)
        before = self.hyperparameters["damping"]
        self.hyperparameters["damping"] = after = self.adapt_damping.adapt(before, found)
        if after != before:
            self.counts["damping grown" if after > before else "damping shrunk"] += 1

    @torch.no_grad()
    def precondition(self) -> None:
        """Put g̃ in the place of the gradients, and leave the update to another optimizer of the same parameters.

        It stands where `step` would: schedules, `curvature_every` and the device go on by one step. Momentum, weight
        decay and groups left to Adam have no part in it, the learning rate only where a `trust_region` bounds the step.
        Where the method gives several directions it is the last one.

        Raises:
            RuntimeError, ValueError, FloatingPointError: as `step`.
            RuntimeError: also with `adapt_damping`, which has to see the steps.
        """
        if self.adapt_damping is not None:
            raise RuntimeError("adapt_damping has to see the steps: call step(closure) instead of precondition()")
        for parameter, direction in self._solved()[-1].items():
            assert parameter.grad is not None
            parameter.grad.copy_(direction)
        self._taken()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on, for ``torch.save``: hyperparameters, momentum or moments, the steps.

        Between two curvatures the last one is part of it, and may be large: with `curvature_every` k, it is not after
        each k-th step.
        """
        operator = None if self._operator is None else saved_operator(self._operator)
        own = {"steps": self.steps, "shapes": shapes_of(self.param_groups), "operator": operator}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another optimizer of this class, for parameters in the same order, was.

        Its numbers hold from then on; its schedules were not saved, and those that this optimizer was made with go on
        at the step reached.

        Raises:
            ValueError: for the state of another kind of optimizer or of other parameters; nothing has changed then.
        """
        check_fits(state_dict, self.param_groups, type(self).__name__)
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self.steps = state_dict["steps"]
        self._schedules.found(self.param_groups)
        operator = state_dict["operator"]
        parameters = [parameter for _, parameter in self._parameters]
        self._operator = None if operator is None else restored_operator(operator, parameters)
        self._pace()

    def _solved(self) -> list[dict[Tensor, Tensor]]:
        """The directions of this step, by parameter; nothing that a later attempt would miss has changed."""
        check_frozen(self._frozen)
        self._schedules.apply(self.param_groups, self.steps, self.ranges)
        last, new = self._operator, None
        if self._curvature_due():
            new = self._given() if self.capture is None else self.capture.operator_of_gradients()
        drive = gradient_of(self._parameters)
        self._operator = last if new is None else new
        try:
            return [self._parts(self._bounded(direction)) for direction in self._directions(new, drive)]
        except BaseException:
            self._operator = last
            raise

    def _bounded(self, direction: Tensor) -> Tensor:
        radius = self.hyperparameters["trust_region"]
        if radius is None:
            return direction
        assert self._operator is not None
        rates = rates_of(self.param_groups, [parameter for _, parameter in self._parameters])
        factor = scale(self._operator, direction, rates.to(direction), radius)
        self.counts["trust region"] += factor < 1.0
        return direction * factor

    def _taken(self) -> None:
        """A step has been taken."""
        self.steps += 1
        if self.capture is not None:
            self.capture.forget_gradients()
        self._pace()

    def _pace(self) -> None:
        if self.steps % self.curvature_every == 0:
            self._operator = None  # it would only take memory while the next one is captured
        if self.capture is not None:
            self.capture.paused = not self._curvature_due()

    def _plain(self) -> dict[Tensor, Tensor]:
        """The gradients of the parameters that are left to Adam; as with Adam, not all need to have one."""
        for path, parameter in self._left:
            check_dense(path, parameter)
        return {parameter: parameter.grad for _, parameter in self._left if parameter.grad is not None}

    def _parts(self, direction: Tensor) -> dict[Tensor, Tensor]:
        """A direction of shape (N,) as directions of the parameters."""
        return parts_of(direction, [parameter for _, parameter in self._parameters])


def _tell(method: WeakMethod[Any], operator: Operator) -> None:
    called = method()
    if called is not None:
        called(operator)


@contextmanager
def _paused(capture: Capture | None) -> Iterator[None]:
    """Forward passes inside are not captured."""
    before = capture is not None and capture.paused
    if capture is not None:
        capture.paused = True
    try:
        yield
    finally:
        if capture is not None:
            capture.paused = before
