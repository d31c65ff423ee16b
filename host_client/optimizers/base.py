"""What every natural-gradient optimizer does: capture, gradient, solve, descend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, overload
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from host_client.curvature import Capture, Check, Criteria, Diverged, GradScaler, Kind, trained_parameters
from host_client.frames import releasing
from host_client.optimizers.change import Change
from host_client.optimizers.checkpoints import Resumable
from host_client.optimizers.descent import descend
from host_client.optimizers.diverged import check_finite
from host_client.optimizers.groups import check_frozen, make_groups
from host_client.optimizers.levenberg_marquardt import LevenbergMarquardt
from host_client.optimizers.line_search import LineSearch
from host_client.optimizers.options import Curvature
from host_client.optimizers.ranges import at_least_one, check_one_momentum, check_together
from host_client.optimizers.replay import Reevaluation, number
from host_client.optimizers.saved import restored_operator, saved_operator
from host_client.optimizers.schedules import Scheduled, Schedules
from host_client.optimizers.spring import keep_direction, spring_drive
from host_client.optimizers.state_checks import shapes_of
from host_client.optimizers.trial import Trial, check_closure
from host_client.optimizers.trust_region import TrustRegion
from host_client.optimizers.vectors import dense_gradient, gradient_of, parts_of, rates_of
from spu_link.errors import InvalidProgram
from spu_link.operators import Operator
from spu_link.values import all_finite


class NaturalGradient(Resumable, ABC):
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
        lr: learning rate η ≥ 0; there is no default, no value suits all problems. With a line search or F exact and a
            small λ, 1 is the full step.
        damping: λ ≥ 0, with F the curvature of the mean (or sum) loss over the batch.
        momentum: β in [0, 1), as in `torch.optim.SGD`, applied to g̃: u ← β u + g̃, θ ← θ − η u.
        betas: (β₁, β₂), each in [0, 1), for Adam's rule on g̃ in the place of momentum; (0, 0) is TNGD-Adam of arXiv
            2405.13817.
        eps: ε > 0 of Adam's rule.
        weight_decay: w ≥ 0, decoupled: before each update θ ← θ − η w θ. It is no part of the loss or of F.
        groups: parameters with hyperparameters of their own, ``{"params": …, "lr": …, "weight_decay": …}``, also
            ``"momentum"`` or, if the optimizer has them, ``"betas"`` and ``"eps"``. With ``"adam": True`` a group is
            left to Adam on the plain gradient, by default with Adam's own ``lr``, ``betas`` and ``eps``, and is no part
            of F. The parameters that no group names, if there are any, are the first group. Damping and what else is
            not of a group is in the first one with a natural gradient, `hyperparameters`. Further keys are kept as they
            are, as torch keeps them.
        curvature: ``"exact"``, ``"mc"`` or ``"empirical"``, see `Capture`; or a function that is called when a step
            needs F and gives it, an operator of the N parameters with a natural gradient in the order of
            ``model.parameters()``: then nothing is captured.
        samples: labels drawn for each sample when the curvature is ``"mc"``.
        check: when F is verified against the autograd graph: ``"first"``, ``"always"`` or ``"never"``, see `Capture`.
        curvature_every: k ≥ 1: each k-th step has a new F, the first one too; the steps between use the last one, and
            their forward passes are not captured.
        grad_scaler: the scaler that multiplies the losses; required where there is one.
        trust_region: δ > 0: the whole update Δ of the parameters with a natural gradient, momentum and weight decay
            included, is shortened to ½ Δᵀ(F + λI)Δ ≤ δ where it is longer, and to the minimum of the quadratic model
            along it, see `TrustRegion`, and the momentum with it; None for no bound. Not
            with betas: Adam's rule does not step along g̃.
        adapt_damping: how λ follows the success of the quadratic model, from `damping` on; None for not at all. Each
            step then needs a closure, which with the same random numbers has to give the same loss.
        spring: μ in [0, 1), the momentum of SPRING (arXiv 2401.10190): g̃ₖ solves (F + λI) g̃ₖ = ∇ℓ + λ μ g̃ₖ₋₁. Only the
            drive changes; where F has no curvature, g̃ is an average of the directions before. Not together with
            momentum or betas.
        line_search: how each update is shortened until it lowers the loss, see `LineSearch`; None for not at all.
            Needs a closure as `adapt_damping` does, and shares its evaluation. Not with betas.
        hyperparameters: further ones of the subclass, for the first group.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range, or groups that do not fit the model.

    Attributes:
        capture: the hooks on model and criterion; ``capture.close()`` removes them when training is over. None when
            the curvature is given.
        counts: what happened how often.
        steps: how many steps have been taken.
        hyperparameters: the first group with a natural gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criteria,
        *,
        lr: Scheduled,
        damping: Scheduled,
        momentum: Scheduled = 0.0,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        groups: Sequence[Mapping[str, Any]] | None = None,
        curvature: Curvature = "exact",
        samples: int = 1,
        check: Check = "first",
        curvature_every: int = 1,
        grad_scaler: GradScaler | None = None,
        trust_region: Scheduled | None = None,
        adapt_damping: LevenbergMarquardt | None = None,
        spring: Scheduled = 0.0,
        line_search: LineSearch | None = None,
        **hyperparameters: Any,
    ) -> None:
        for name in hyperparameters.keys() - self.ranges.keys():
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}")
        at_least_one("curvature_every", curvature_every)
        if adapt_damping is not None and callable(damping):
            raise ValueError("Invalid damping: a schedule; with adapt_damping it must be a number, to start from")
        rule = {"momentum": momentum} if betas is None else {"betas": betas, "eps": eps}
        shared = {"lr": lr, "weight_decay": weight_decay, **rule}
        own = {"damping": damping, "trust_region": trust_region, "spring": spring, **hyperparameters}
        made = make_groups(model, groups, shared, {**own, "optimizer": type(self).__name__, "steps": 0})
        check_together(made, momentum=momentum, trust_region=trust_region, spring=spring, line_search=line_search)
        self._schedules = Schedules(made, self.ranges)
        self._schedules.apply(made, 0, self.ranges)
        natural = [p for group in made if not group["adam"] for p in group["params"]]
        self._parameters = trained_parameters(model, natural)
        self._check_size(sum(p.numel() for p in natural))
        chosen = {id(p) for p in natural}
        self._left = [(path, p) for path, p in trained_parameters(model) if id(p) not in chosen]
        self._frozen = [(path, p) for path, p in model.named_parameters() if not p.requires_grad]
        self._whole = False
        now = next(group for group in made if "damping" in group)
        super().__init__(made, {name: now[name] if callable(value) else value for name, value in shared.items()})
        self._whole = True
        self._complete()
        self.counts: Counter[str] = Counter()
        self.curvature_every = curvature_every
        self._options = {
            "curvature": curvature,
            "samples": samples,
            "check": check,
            "curvature_every": curvature_every,
            "adapt_damping": adapt_damping,
            "line_search": line_search,
        }
        self.adapt_damping, self.line_search = adapt_damping, line_search
        self._model = model
        self._operator: Operator | None = None
        self.capture: Capture | None = None
        if callable(curvature):
            self._given = curvature
        else:
            self.capture = self._capturing(
                model, criterion, natural, curvature=curvature, samples=samples, grad_scaler=grad_scaler, check=check
            )

    def _capturing(
        self,
        model: nn.Module,
        criterion: Criteria,
        natural: Sequence[nn.Parameter],
        *,
        curvature: Kind,
        samples: int,
        grad_scaler: GradScaler | None,
        check: Check,
    ) -> Capture:
        """What makes the curvature of this kind of the losses that gradients are those of."""
        complete = WeakMethod(self._on_operator)  # the model's hooks do not keep the optimizer alive
        return Capture(
            model,
            criterion,
            curvature=curvature,
            samples=samples,
            check=check,
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
    @releasing
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the natural gradient.

        Parameters whose gradient is None stay as they are, and so do their momentum and moments; the direction of the
        others is as if that gradient were 0.

        Args:
            closure: evaluates the model, computes gradients and returns the loss; without one, that has been done.

        Returns:
            The closure's loss, at the parameters before the step. Gradients are those of this loss.

        Raises:
            RuntimeError: when there was no training forward pass with a loss and a backward pass through it since the
                last step, when no parameter has a gradient, or when one has been unfrozen; without a closure, when
                `adapt_damping` or `line_search` needs one.
            ValueError: when a hyperparameter has left its range.
            Diverged: when a gradient, a direction or the curvature is not finite.
        """
        again = self._reevaluation(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._attempt():
            plain = self._plain()
            directions = self._solve()
            change = Change([*self._used(), *plain], self.state)
            try:
                with self._trust_region() as region:
                    parts = [self._parts(direction) for direction in directions]
                    shortened = descend(self.param_groups, parts, plain, self.state, change, region)
                self.counts["trust region"] += shortened
                fraction = 1.0 if again is None else self._judge(change, again, number(loss))
            except BaseException:
                change.undo()
                raise
        if fraction > 0.0:
            self.counts["updates"] += len(directions)
        self._taken(directions[-1] if fraction > 0.0 else None)
        return loss

    @torch.no_grad()
    @releasing
    def precondition(self) -> None:
        """Put g̃ in the place of the gradients, and leave the update to another optimizer of the same parameters.

        It stands where `step` would: schedules, `curvature_every`, `spring` and the device go on by one step. Momentum,
        weight decay and groups left to Adam have no part in it. A `trust_region` bounds −η g̃ with the η given here, so
        the other optimizer's update only if it is that; momentum that it adds is not bounded. Where the method gives
        several directions it is the last one. Sparse gradients become dense.

        Raises:
            RuntimeError, ValueError, Diverged: as `step`.
            RuntimeError: also with `adapt_damping` or `line_search`, which have to see the steps.
        """
        for name in ("adapt_damping", "line_search"):
            if getattr(self, name) is not None:
                raise RuntimeError(f"{name} has to see the steps: call step(closure) instead of precondition()")
        with self._attempt():
            direction = self._solve()[-1]
            rates = rates_of(self.param_groups, [parameter for _, parameter in self._parameters])
            change = self._parts(direction * -rates.to(direction))
            with self._trust_region() as region:
                fraction = 1.0 if region is None else region.fraction(change, change)
            self.counts["trust region"] += fraction < 1.0
        for parameter, part in self._parts(direction * fraction).items():
            parameter.grad = part if parameter.grad.is_sparse else parameter.grad.copy_(part)  # type: ignore[union-attr]
        self._taken(direction)

    def _kept(self, group: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, ...]:
        return super()._kept(group, whole) + (("spring",) if whole["spring"] and not group["adam"] else ())

    def _further(self) -> dict[str, Any]:
        operator = None if self._operator is None else saved_operator(self._operator)
        return {"shapes": shapes_of(self.param_groups), "operator": operator}

    def _read(self, state_dict: Mapping[str, Any]) -> Callable[[], None]:
        blocks = state_dict.get("operator")
        operator = None if blocks is None else restored_operator(blocks, [p for _, p in self._parameters])

        def place() -> None:
            self._schedules.found(self.param_groups)
            self._operator = operator
            self._pace()

        return place

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Keep the last curvature if what is done within fails."""
        last = self._operator
        try:
            yield
        except BaseException:
            self._operator = last
            raise

    def _solve(self) -> list[Tensor]:
        """Return the directions of this step, each of shape (N,), all finite."""
        check_frozen(self._frozen)
        self._schedules.apply(self.param_groups, self.steps, self.ranges)
        check_one_momentum(self.param_groups)
        gradient, new = gradient_of(self._parameters), None
        if gradient.device.type == "cpu":  # elsewhere that would be waited for, and the copy that is sent is checked
            self._check_finite("gradient", gradient)
        if self._curvature_due():
            new = self._given() if self.capture is None else self.capture.operator_of_gradients()
            self._operator = new
        if not self._used():
            raise RuntimeError("no parameter has a gradient: call loss.backward() before step()")
        assert self._operator is not None
        group = self.hyperparameters
        drive = spring_drive(gradient, group["damping"] * group["spring"], self._parameters, self.state)
        try:
            directions = list(self._directions(new, drive))
            for direction in directions:
                self._check_finite("direction", direction)
        except (InvalidProgram, FloatingPointError, LinAlgError) as error:
            self._diagnose(gradient, error)
            if isinstance(error, LinAlgError):
                damping = group["damping"]
                raise ValueError(
                    f"Invalid damping: {damping}; the curvature with it is singular in float64, raise it"
                ) from error
            raise
        return directions

    def _diagnose(self, gradient: Tensor, error: Exception) -> None:
        """Raise `Diverged` from an error that comes of a gradient or a curvature that is not finite."""
        try:
            self._check_finite("gradient", gradient)
        except Diverged as first:
            raise first from error
        assert self._operator is not None
        if not all_finite(self._operator.curvature(torch.ones_like(gradient))):
            raise Diverged(self.steps + 1, "curvature") from error

    @contextmanager
    def _trust_region(self) -> Iterator[TrustRegion | None]:
        """Give the bound on an update, if there is one; an update that it cannot bound has diverged."""
        group, region = self.hyperparameters, None
        if group["trust_region"] is not None:
            assert self._operator is not None
            region = TrustRegion(self._operator, self._parameters, group["damping"], group["trust_region"])
        try:
            yield region
        except FloatingPointError as error:
            raise Diverged(self.steps + 1, "length of the update") from error

    def _reevaluation(self, closure: Callable[[], float] | None) -> Reevaluation | None:
        """Return what evaluates the loss after this step, if anything asks for it."""
        for name in ("adapt_damping", "line_search"):
            if getattr(self, name) is not None:
                check_closure(name, closure)
        if closure is None or not (self._adapts() or self.line_search is not None):
            return None
        return Reevaluation(self._model, closure, self.capture)

    def _judge(self, change: Change, again: Reevaluation, before: float) -> float:
        """Shorten the update by the line search, and adapt the damping; return the fraction of the update left."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        trial = Trial(change, again, before, parameters, self.counts)
        fraction = 1.0 if self.line_search is None else trial.search(self.line_search)
        if self.adapt_damping is not None and self._adapts():
            assert self._operator is not None
            trial.adapt(self.adapt_damping, self.hyperparameters, self._operator, self._parameters)
        return fraction

    def _adapts(self) -> bool:
        return self.adapt_damping is not None and self.adapt_damping.due(self.steps)

    def _taken(self, direction: Tensor | None) -> None:
        """Finish a step along this direction; None if it was not taken."""
        keep_direction(direction if self.hyperparameters["spring"] else None, self._parameters, self.state)
        self.hyperparameters["steps"] += 1
        if self.capture is not None:
            self.capture.finish_step()
        self._pace()

    def _pace(self) -> None:
        if self.steps % self.curvature_every == 0:
            self._operator = None  # it would only take memory while the next one is captured
        if self.capture is not None:
            self.capture.paused = not self._curvature_due()
            self.capture.step = self.steps + 1

    def _used(self) -> list[Tensor]:
        """Return the parameters with a natural gradient that the losses have used: those that have a gradient."""
        return [p for _, p in self._parameters if p.grad is not None]

    def _plain(self) -> dict[Tensor, Tensor]:
        """Return the gradients of the parameters left to Adam, of those that have one.

        Raises:
            Diverged: for one on the CPU that is not finite.
        """
        plain: dict[Tensor, Tensor] = {p: dense_gradient(p) for _, p in self._left if p.grad is not None}
        for path, p in self._left:
            if p in plain and p.device.type == "cpu":
                check_finite(self.steps + 1, "gradient", plain[p].flatten(), [(path, p)])
        return plain

    def _parts(self, direction: Tensor) -> dict[Tensor, Tensor]:
        """Return a direction of shape (N,) as directions of the parameters that have a gradient."""
        parts = parts_of(direction, [parameter for _, parameter in self._parameters])
        return {p: part for p, part in parts.items() if p.grad is not None}

    def _check_finite(self, name: str, vector: Tensor) -> None:
        check_finite(self.steps + 1, name, vector, self._parameters)


def _tell(method: WeakMethod[Any], operator: Operator) -> None:
    called = method()
    if called is not None:
        called(operator)
