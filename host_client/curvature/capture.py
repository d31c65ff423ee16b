"""The curvature of a loss, read from the autograd graph while the ordinary loop runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor, nn

from host_client.capacity import Capacity
from host_client.curvature.base import BaseCapture, check_processes
from host_client.curvature.errors import CurvatureMismatch, Diverged, UnsupportedCriterion, UnsupportedLayer
from host_client.curvature.gradients import GradScaler
from host_client.curvature.hooks import WeakHook
from host_client.curvature.linearise import Check, Linearise, LossCurvature
from host_client.curvature.losses import Kind, LossCall, check_criterion, loss_call
from host_client.curvature.losses.registry import FUNCTIONS
from host_client.curvature.watch import Watch
from spu_link.operators import LayerRows, stack
from spu_link.operators.zeros import without
from spu_link.tuning import without_collection

Criterion: TypeAlias = nn.Module | Callable[..., Any]
"""A loss: a module, or one of torch's loss functions."""

Criteria: TypeAlias = Criterion | Sequence[Criterion] | None
"""The losses of a model: one, several, or those that it computes itself."""


class Capture(BaseCapture):
    """Hooks that compute the curvature of each training loss of a model.

    The curvature is F = AᵀA, shape (N, N) for N elements of trained parameters. A = SᵀJ has c rows for each sample, J
    is the Jacobian of the criterion's input z, and the columns S are those of `LossCall.root`: by default S Sᵀ is the
    Hessian of the criterion with respect to z, and F the generalised Gauss–Newton matrix, exactly. It is complete when
    the criterion has been called, before any backward pass.

    A is read from the autograd graph behind z. How the model was called, and what it did, is free: the graph says what
    a backward pass would do. Functions with a rule in `host_client.curvature.rules` are cheap as long as samples lie
    apart; all else costs a backward pass for each column and sample (`CurvatureFallback`). The operator shares memory
    with the layers' inputs: do not overwrite a batch before its step is done.

    A loss counts as training when the model is in training mode and gradients are enabled.

    Args:
        model: whose parameters are trained: those that require grad now.
        criterion: the loss: a module that is called in the loop; one of torch's functions, such as
            ``F.cross_entropy``, that is called in the loop after the model; several of either; or None for losses of
            torch that are called inside the model. See `check_criterion`.
        curvature: ``"exact"``; ``"mc"``, the Fisher matrix from labels drawn from the model's own distribution; or
            ``"empirical"``, from the labels given.
        samples: for ``"mc"``, how many labels are drawn for each sample.
        generator: for ``"mc"``, what draws them; None for torch's own.
        check: when F is verified against the graph, at the cost of one backward pass: ``"first"``, in the first pass
            and whenever the recorded graph has changed; ``"always"``; or ``"never"``.
        on_operator: called with each operator as soon as it is complete, inside the call of the criterion.
        grad_scaler: the scaler that multiplies the losses.
        parameters: those of the model's trained parameters that F is of; None for all.

    Attributes:
        paused: while true, losses are not captured.
        step: number of the step to come, from 1, for messages; the optimizer sets it.

    Raises:
        UnsupportedLayer: later, at the criterion, for a reentrant checkpoint.
        UnsupportedCriterion: for a loss whose curvature is not known; also later, for arguments that do not fit.
        UnsupportedProcessGroup: when several processes train together.
        CurvatureTooLarge: later, at the criterion, for more than there is memory for.
        Diverged: later, at the criterion, for a loss that is not finite.
        CurvatureMismatch: later, at the criterion, for an F that is not that of the graph.
        ValueError: when no parameter requires grad, when one of `parameters` is not such a one of the model, for a
            complex one, or for an option out of its range.

    Note:
        The model does not keep its capture alive: with the last reference to it (that of the optimizer, say) the hooks
        are gone. Copies of the model are not captured.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criteria,
        *,
        curvature: Kind = "exact",
        samples: int = 1,
        generator: torch.Generator | None = None,
        check: Check = "first",
        on_operator: Callable[[LayerRows], None] | None = None,
        grad_scaler: GradScaler | None = None,
        parameters: Iterable[nn.Parameter] | None = None,
    ) -> None:
        super().__init__(model, curvature=curvature, samples=samples, grad_scaler=grad_scaler, parameters=parameters)
        losses = _as_list(criterion)
        for loss in losses:
            check_criterion(loss, curvature)
        if check not in get_args(Check):
            raise ValueError(f"Invalid check: {check!r}; it must be 'first', 'always' or 'never'")
        self.criterion = criterion
        self._on_operator = on_operator
        self._scaled = grad_scaler is not None
        self._linearise = Linearise(self._parameters, kind=curvature, draws=samples, generator=generator, check=check)
        self._operator: LayerRows | None = None
        self._stepped = False  # whether a step has used the last loss
        self._last_loss: Callable[[], Tensor | None] = lambda: None
        functions = FUNCTIONS if criterion is None else [loss for loss in losses if not isinstance(loss, nn.Module)]
        self._watch = watch = Watch(functions, WeakHook(self._capture))
        self._removals.append(watch.close)
        for loss in losses:
            if isinstance(loss, nn.Module):
                self.own(loss.register_forward_hook(WeakHook(self._capture), with_kwargs=True))
        if functions:
            self.own(model.register_forward_pre_hook(_Switch(watch, on=True)))
        if criterion is None:
            self.own(model.register_forward_hook(_Switch(watch, on=False), always_call=True))

    def bound_for(self, device: Capacity, *, itemsize: int | None = None) -> None:
        """Refuse, from now on, operators that are too large for a device.

        Args:
            device: what it can hold.
            itemsize: bytes of an element on the way there; None for those of the operator.
        """
        self._linearise.device, self._linearise.link_itemsize = device, itemsize

    @property
    def operator(self) -> LayerRows:
        """The curvature of the last loss, until a step has used it: its factor A, with N columns.

        Raises:
            RuntimeError: when there was none.
        """
        if self._operator is None and self._stepped:
            raise RuntimeError(
                "the curvature of the last step has been released, and no loss has been captured since; read it before "
                "step(), or call the criterion again"
            )
        if self._operator is None:
            raise RuntimeError(
                "no training forward pass with a loss has been captured; with the model in training mode "
                "(model.train()) and gradients enabled, call the criterion that the optimizer was given on what the "
                "model has computed, after the optimizer has been made"
            )
        return self._operator

    def operator_of_gradients(self) -> LayerRows:
        """Return F of the losses whose gradients the parameters hold: Σ over backward passes of factor · F of the loss.

        The factor is what the loss was multiplied by before it was differentiated, without that of the `grad_scaler`.

        Raises:
            RuntimeError: when no backward pass through a captured loss has added to them; for a negative factor.
            UnsupportedProcessGroup: when several processes train together.
        """
        check_processes()
        self._watch.stop()
        held = self._gradients.held()
        if not held:
            if not self._stepped:
                self.operator  # noqa: B018 - raises if there was no loss either
            raise RuntimeError(
                "no backward pass through a captured loss since the last step; call loss.backward() before step(), "
                "with a loss of the criterion that the optimizer was given"
            )
        weights = self._gradients.weights(held)
        operators = [self._restrict(loss.curvature, loss.parameters) for loss in held]
        if weights == [1.0]:
            return operators[0]
        return stack(operators, weights, [loss.curvature.columns for loss in held])

    def _restrict(self, curvature: LossCurvature, parameters: frozenset[int]) -> LayerRows:
        """Return F with zeros for all but these parameters: those that ``inputs=`` has left out do not move."""
        if curvature.used <= parameters:
            return curvature.operator
        sizes = [parameter.numel() for _, parameter in self._parameters]
        return without(curvature.operator, curvature.columns, sizes, curvature.used - parameters)

    def differentiated(self) -> list[LayerRows]:
        """Return F of each loss whose gradients the parameters hold, in the order of the backward passes."""
        return [loss.curvature.operator for loss in self._gradients.held()]

    def finish_step(self) -> None:
        """Start over: a step has used the gradients. A loss that is kept holds no curvature any more."""
        super().finish_step()
        self._operator, self._stepped = None, True

    def close(self) -> None:
        """Remove the hooks and release the last operator. The model is as it was."""
        super().close()
        self._operator = None

    def _capture(self, criterion: Criterion, args: tuple[Any, ...], kwargs: dict[str, Any], loss: object) -> None:
        """Compute the curvature of a loss that the criterion has returned, if it is one of training."""
        if self.paused or not (self.model.training and torch.is_grad_enabled()):
            return
        if not isinstance(loss, Tensor) or loss.grad_fn is None or loss is self._last_loss():
            return  # a module that calls one of the functions is seen twice
        self._last_loss = weakref.ref(loss)
        call = loss_call(criterion, args, kwargs, loss)
        if not call.outputs:
            return
        if any(z.numel() == 0 for z in call.outputs):
            raise UnsupportedCriterion(
                "", f"was given an empty batch, of shape {tuple(call.outputs[0].shape)}; skip it"
            )
        if loss.device.type == "cpu" and not bool(torch.isfinite(loss)):  # an accelerator would be waited for
            counts = call.counts()
            if counts is not None and not bool(counts.any()):
                raise UnsupportedCriterion(
                    "", "was given targets of which none counts, so that the mean is 0 / 0; skip such a batch"
                )
            return self._diverge(call)
        versions = self._versions()
        try:
            with (
                torch.set_grad_enabled(True),  # also after a Ctrl-C while `no_grad` ends
                without_collection(),
                torch.no_grad(),
                # Under autocast the factors would be rounded, and the backward pass is not made for it.
                torch.autocast(call.outputs[0].device.type, enabled=False),
            ):
                curvature = self._linearise(call)
        except CurvatureMismatch:
            if all(bool(torch.isfinite(z).all()) for z in call.outputs):
                raise
            return self._diverge(call)  # on an accelerator it is only found out here
        if self._versions() != versions:
            raise UnsupportedLayer(
                "",
                "has a checkpoint that is computed again for the capture, and changes buffers each time (the running "
                "statistics of a BatchNorm); leave that layer out of the checkpoint, or put it in eval mode",
            )
        if curvature is None:
            return
        self._operator, self._stepped = curvature.operator, False
        self._gradients.follow(loss, curvature)
        if self._on_operator is not None:
            self._on_operator(curvature.operator)

    def _diverge(self, call: LossCall) -> None:
        """Raise `Diverged` for a loss that is not finite; not with a scaler, which skips the step."""
        if not self._scaled:
            raise Diverged(self.step, self._linearise.not_finite(call)) from None

    def _versions(self) -> list[int]:
        """Return how often each buffer of the model has been changed."""
        return [buffer._version for buffer in self.model.buffers()]


class _Switch:
    """A hook on a model that starts or stops a watch, and does nothing in a copy of the model."""

    def __init__(self, watch: Watch | None, *, on: bool) -> None:
        self._watch, self._on = watch, on

    def __call__(self, model: nn.Module, *_: object) -> None:
        if self._watch is not None:
            if self._on and model.training and torch.is_grad_enabled():
                self._watch.start()
            else:
                self._watch.stop()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Switch:
        return _Switch(None, on=self._on)

    def __reduce__(self) -> tuple[Any, ...]:
        return _switched_off, (self._on,)


def _switched_off(on: bool) -> _Switch:
    return _Switch(None, on=on)


def _as_list(criterion: Criteria) -> list[Criterion]:
    if criterion is None:
        return []
    if isinstance(criterion, (list, tuple, nn.ModuleList)):
        return list(criterion)
    return [criterion]  # type: ignore[list-item]  # a sequence of another kind is refused by `check_criterion`
