"""The batches behind the gradients, for factors made of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from host_client.curvature import Criteria, GradScaler, Kind, UnsupportedCriterion, UnsupportedLayer
from host_client.curvature.base import BaseCapture, check_processes
from host_client.curvature.hooks import WeakHook
from host_client.curvature.kronecker.factors import LAYERS, ReplayedBatch, kronecker, library
from host_client.curvature.kronecker.operator import KroneckerFactors
from host_client.random_state import RandomState, replay

LOSSES = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)


def check_kronecker(model: nn.Module, criterion: Criteria, parameters: Sequence[tuple[str, nn.Parameter]]) -> nn.Module:
    """Refuse what the library has no factors for: other layers than linear ones and 2-d convolutions, or other losses.

    Args:
        model: whose layers are called as modules, each parameter used by one.
        criterion: called on the model's output itself.
        parameters: the trained ones that K-FAC is for, with their paths.

    Returns:
        The criterion.

    Raises:
        UnsupportedLayer: naming the parameter and the way out.
        UnsupportedCriterion: naming the option.
    """
    used: dict[nn.Parameter, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        used[parameter] = used.get(parameter, 0) + 1
    for path, parameter in parameters:
        layer = model.get_submodule(path.rpartition(".")[0])
        if not isinstance(layer, LAYERS) or not any(parameter is one for one in (layer.weight, layer.bias)):
            raise UnsupportedLayer(
                path,
                f"belongs to {type(layer).__name__}, and K-FAC has factors for Linear and Conv2d; freeze it, leave it "
                'to Adam by a group {"params": […], "adam": True}, or use another method',
            )
        if used[parameter] > 1:
            raise UnsupportedLayer(
                path, "is shared by several layers, which K-FAC has no factors for; use another method"
            )
    if not isinstance(criterion, LOSSES):
        names = ", ".join(loss.__name__ for loss in LOSSES)
        raise UnsupportedCriterion("", f"is {type(criterion).__name__}; K-FAC is known for {names}")
    if criterion.reduction not in ("mean", "sum"):
        raise UnsupportedCriterion("reduction", f"is {criterion.reduction!r}; it must be 'mean' or 'sum'")
    for option in ("weight", "pos_weight"):
        if getattr(criterion, option, None) is not None:
            raise UnsupportedCriterion(
                option, "is given, and K-FAC here takes none; leave it out, or use another method"
            )
    if getattr(criterion, "label_smoothing", 0.0):
        raise UnsupportedCriterion("label_smoothing", f"is {criterion.label_smoothing}; K-FAC here is known for 0")
    return criterion


class KroneckerCapture(BaseCapture):
    """Hooks on a model and its criterion that keep the batches that the gradients come from, for factors made of them.

    Only training forward passes count, and the loss must be the criterion of the model's output itself.

    Args:
        model, criterion: see `check_kronecker`.
        curvature, samples, grad_scaler, parameters: see `Capture`.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: see `check_kronecker`; also later, at the criterion.
        LibraryMissing: without curvlinops.
        UnsupportedProcessGroup, ValueError: see `Capture`.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criteria,
        *,
        curvature: Kind = "exact",
        samples: int = 1,
        grad_scaler: GradScaler | None = None,
        parameters: Iterable[nn.Parameter] | None = None,
    ) -> None:
        super().__init__(model, curvature=curvature, samples=samples, grad_scaler=grad_scaler, parameters=parameters)
        self._criterion = criterion = check_kronecker(model, criterion, self._parameters)
        library()
        self._kind, self._draws = curvature, samples
        self._before: RandomState | None = None
        self._pass: tuple[RandomState, Tensor, weakref.ref[Tensor]] | None = None
        self.own(
            model.register_forward_pre_hook(WeakHook(self._begin), with_kwargs=True),
            model.register_forward_hook(WeakHook(self._finish), with_kwargs=True),
            criterion.register_forward_hook(WeakHook(self._criterion_called), with_kwargs=True),
        )

    def operator_of_gradients(self) -> KroneckerFactors:
        """F of the batches whose losses have been differentiated; of several, over all their samples.

        Raises:
            RuntimeError: when there is none, or when the losses do not add up to that of all samples.
            UnsupportedLayer, UnsupportedCriterion: see `kronecker`.
            UnsupportedProcessGroup: when several processes train together.
        """
        check_processes()
        held = self._gradients.held()
        if not held:
            raise RuntimeError(
                "no backward pass through a loss since the last step; call the model in training mode, the criterion "
                "that the optimizer was given on its output, and loss.backward(), before step()"
            )
        batches: list[ReplayedBatch] = [held_pass.curvature for held_pass in held]
        self._check_weights(self._gradients.weights(held), batches)
        seed = int(torch.randint(2**31, ())) if self._kind == "mc" else 0
        paused, self.paused = self.paused, True
        parameters = [parameter for _, parameter in self._parameters]
        try:
            with replay(self.model, batches[0].random):
                return kronecker(
                    self.model,
                    self._criterion,
                    parameters,
                    batches,
                    kind=self._kind,
                    draws=self._draws,
                    seed=seed,
                    unused=[parameter for parameter in parameters if parameter.grad is None],
                )
        finally:
            self.paused = paused

    def _check_weights(self, weights: Sequence[float], batches: Sequence[ReplayedBatch]) -> None:
        """Refuse factors with which losses are not the mean, or the sum, over all samples."""
        sizes = [len(batch.inputs) for batch in batches]
        mean = self._criterion.reduction == "mean"
        expected = [size / sum(sizes) if mean else 1.0 for size in sizes]
        if any(abs(w - e) > 1e-3 * e for w, e in zip(weights, expected, strict=True)):
            raise RuntimeError(
                f"losses of {sizes} samples were differentiated with the factors {weights}, and K-FAC has the "
                f"curvature of all samples together; weight the losses by {expected}"
            )

    def close(self) -> None:
        """Remove the hooks and release the batches."""
        super().close()
        self._before = self._pass = None

    def finish_step(self) -> None:
        """Start over: a step has used the gradients. What belonged to it is released; a kept loss holds none of it."""
        super().finish_step()
        self._pass = None

    def _counts(self) -> bool:
        return self.model.training and torch.is_grad_enabled() and not self.paused

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._counts():
            self._before = RandomState.now()

    def _finish(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if not self._counts() or self._before is None:
            return
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            raise UnsupportedLayer(
                "", "takes or gives something else than one tensor, which K-FAC here is not for; use another method"
            )
        self._pass = self._before, args[0], weakref.ref(output)

    def _criterion_called(
        self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Tensor
    ) -> None:
        if not self._counts() or self._pass is None or not loss.requires_grad:
            return
        random, inputs, output = self._pass
        z: Tensor = args[0] if args else kwargs["input"]
        if z is not output():
            raise UnsupportedCriterion(
                "", "was called on something else than the model's last output itself; give K-FAC that output"
            )
        if z.dim() < 2:
            raise UnsupportedCriterion("", f"was called on outputs of shape {tuple(z.shape)}; K-FAC needs (b, d)")
        batch = ReplayedBatch(inputs, args[1] if len(args) > 1 else kwargs["target"], random)
        self._gradients.follow(loss, batch)
