"""The curvature of a loss, captured by hooks while the ordinary loop runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from host_client.curvature.errors import UnsupportedLayer
from host_client.curvature.gradients import Gradients, GradScaler
from host_client.curvature.graph import graph_of
from host_client.curvature.hooks import WeakHook
from host_client.curvature.linearise import Linearise
from host_client.curvature.losses import Kind, check_criterion
from host_client.curvature.mixing import path_of_batch_norm
from host_client.curvature.passes import Pass, tensors
from host_client.curvature.recorder import Recorder
from host_client.curvature.trained import trained_parameters
from host_client.links.base import Capacity
from spu_link.operators import LayerRows


class Capture:
    """Hooks on a model and its criterion that turn each training loss into the curvature of that loss.

    The curvature is a matrix F = AᵀA of the trained parameters, A = SᵀJ, where J is the Jacobian of the criterion's
    input z and the columns S are those of `loss_root`: by default S Sᵀ is the Hessian of the criterion with respect to
    z, and F the generalised Gauss–Newton matrix, exactly. It is complete when the criterion has been called, before
    any backward pass.

    A forward pass counts as training when the model is in training mode and gradients are enabled; others pass
    untouched. What happens between the model's output and the criterion is free. The operator shares memory with the
    layers' inputs: do not overwrite a batch before its step is done.

    Args:
        model: its forward pass may use its trained parameters in any differentiable way, so long as samples do not mix.
            Functions without a rule in `host_client.curvature.rules` cost a backward pass a row (`CurvatureFallback`).
            Which parameters are trained is looked at once, here. The number of samples b is the leading extent of the
            model's output (of its first tensor), or of its input if it gives out no tensor, or if there are several
            rows of output for each of input, sample by sample, and these belong together.
        criterion: one of torch's losses that `check_criterion` knows. The module itself has to be called.
        curvature: ``"exact"``; ``"mc"``, the Fisher matrix from labels drawn from the model's own distribution; or
            ``"empirical"``, from the labels given.
        samples: for ``"mc"``, how many labels are drawn for each sample.
        generator: for ``"mc"``, what draws them; None for torch's own.
        on_operator: called with each operator as soon as it is complete, inside the call of the criterion.
        grad_scaler: the scaler that multiplies the losses; only needed when the gradients of several backward passes
            are added up.
        parameters: those of the model's trained parameters that F is of; None for all.

    Attributes:
        paused: while true, forward passes are not recorded: they run as if there were no capture.

    Raises:
        UnsupportedLayer: later, in the forward pass or at the criterion, for a model that mixes samples.
        UnsupportedCriterion: for a loss whose curvature is not known; also later, for targets that do not fit.
        CurvatureTooLarge: later, at the criterion, for more than there is memory for.
        ValueError: when no parameter requires grad, or when one of `parameters` is not such a one of the model.

    Note:
        The model does not keep its capture alive: with the last reference to it (that of the optimizer, say) the hooks
        are gone. Copies of the model are not captured.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        *,
        curvature: Kind = "exact",
        samples: int = 1,
        generator: torch.Generator | None = None,
        on_operator: Callable[[LayerRows], None] | None = None,
        grad_scaler: GradScaler | None = None,
        parameters: Iterable[nn.Parameter] | None = None,
    ) -> None:
        check_criterion(criterion)
        if curvature not in ("exact", "mc", "empirical"):
            raise ValueError(f"Invalid curvature: {curvature!r}; it must be 'exact', 'mc' or 'empirical'")
        if samples < 1:
            raise ValueError(f"Invalid samples: {samples}; at least one label must be drawn")
        self.model, self.criterion = model, criterion
        self._on_operator = on_operator
        self.paused = False
        self._parameters = trained_parameters(model, parameters)
        self._gradients = Gradients(self._parameters[0][1], grad_scaler)
        self._recorder = Recorder([p for _, p in self._parameters], partial(_refuse, model))
        self._linearise = Linearise(self._parameters, kind=curvature, draws=samples, generator=generator)
        self._passes: list[Pass] = []
        self._seen = False
        self._operator: LayerRows | None = None
        handles = [
            model.register_forward_pre_hook(WeakHook(self._begin), with_kwargs=True, prepend=True),
            model.register_forward_hook(WeakHook(self._finish), with_kwargs=True, always_call=True),
            criterion.register_forward_hook(WeakHook(self._criterion_called), with_kwargs=True),
        ]
        self._remove_hooks = weakref.finalize(self, _remove, handles, self._recorder)

    def bound_for(self, device: Capacity, *, itemsize: int | None = None) -> None:
        """Refuse, from now on, operators that are too large for a device.

        Args:
            device: what it can hold.
            itemsize: bytes of an element on the way there; None for those of the operator.
        """
        self._linearise.device, self._linearise.link_itemsize = device, itemsize

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with their dotted paths, in the order of the operator's columns."""
        return list(self._parameters)

    @property
    def operator(self) -> LayerRows:
        """The curvature of the last loss of a training forward pass: c rows a sample.

        Raises:
            RuntimeError: when there was none.
        """
        if self._operator is None:
            if self._seen:
                raise RuntimeError(
                    "a training forward pass was seen, but no loss of it: call the criterion that the optimizer was "
                    "given (the module itself, not its function), on what the model has computed, with gradients "
                    "enabled"
                )
            raise RuntimeError(
                "no training forward pass has been captured: call the model in training mode (model.train()) with "
                "gradients enabled, after the optimizer has been made"
            )
        return self._operator

    def operator_of_gradients(self) -> LayerRows:
        """The curvature of the losses whose gradients the parameters hold.

        With one backward pass since `forget_gradients` it is the curvature of that loss, whatever factor the loss was
        multiplied with before it was differentiated (by a `GradScaler`, say). With several it is the sum over the
        passes of factor times curvature, factors being seen relative to the scale of the `grad_scaler`: with
        ``(loss / k).backward()`` for each of k micro-batches, the mean.

        Raises:
            RuntimeError: when there was no backward pass through a captured loss since then; or when one of several
                had a factor above 1.
        """
        combined = self._gradients.combined()
        if combined is None:
            self.operator  # noqa: B018 - says so if there was no forward pass or loss either
            raise RuntimeError(
                "no backward pass through a captured loss since the last step: call loss.backward() before step(), "
                "with a loss of the criterion that the optimizer was given"
            )
        return combined

    def differentiated(self) -> list[LayerRows]:
        """The curvature of each loss whose gradients the parameters hold, in the order of the backward passes."""
        return self._gradients.operators()

    def forget_gradients(self) -> None:
        """Start over: the parameters' gradients have been used, or set to zero."""
        self._gradients.forget()

    def close(self) -> None:
        """Remove the hooks and let go of the last operator. The model is as it was."""
        self._remove_hooks()
        self._operator, self._seen = None, False
        self._passes.clear()
        self._gradients.forget()

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._recorder.leave()  # only entered still if a forward pass was interrupted from the keyboard
        if self.paused or not (model.training and torch.is_grad_enabled()):
            return
        self._passes = [one for one in self._passes if one.alive()]
        self._operator, self._seen = None, False
        self._recorder.enter()

    def _finish(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        recording = self._recorder.leave()
        if recording is None or output is None:  # not a training pass, or one that has failed
            return
        outputs = list(tensors(output))
        sides = (outputs, [*tensors(args), *tensors(kwargs)])
        leading = [next((len(t) for t in side if t.dim()), 0) for side in sides]
        recording.leading = leading[0] or leading[1], leading[1]
        self._passes.append(Pass(recording, outputs, self._forget_dead))
        self._seen = True

    def _criterion_called(
        self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Tensor
    ) -> None:
        z = args[0] if args else kwargs["input"]
        if not (self._passes and torch.is_grad_enabled() and z.grad_fn is not None):
            return
        graph = graph_of(z)
        passes = [one for one in self._passes if one.within(graph)]
        if not passes:
            return
        target = args[1] if len(args) > 1 else kwargs["target"]
        try:
            # Under autocast the factors would be rounded, and the backward pass is not made for it.
            with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
                operator, columns = self._linearise(criterion, z, target, [one.recording for one in passes], graph)
        finally:
            for one in passes:
                one.used = True
            self._forget_dead()
        self._operator = operator
        self._gradients.follow(loss, operator, columns)
        if self._on_operator is not None:
            self._on_operator(operator)

    def _forget_dead(self) -> None:
        """Let go of passes that have had their loss and whose outputs are gone, and so of their graphs."""
        self._passes = [one for one in self._passes if not one.used or one.alive()]


def _remove(handles: list[RemovableHandle], recorder: Recorder) -> None:
    for handle in handles:
        handle.remove()
    recorder.leave()


def _refuse(model: nn.Module, state: Sequence[Tensor]) -> NoReturn:
    path, kind = path_of_batch_norm(model, state)
    raise UnsupportedLayer(
        path,
        f"({kind}) takes its statistics from the batch, so samples are not independent; put it in eval mode or replace "
        "it with GroupNorm",
    )
