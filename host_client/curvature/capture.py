"""The curvature of a training forward pass, captured by hooks while the ordinary loop runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from host_client.curvature.cotangents import backpropagate
from host_client.curvature.criterion import check_criterion, check_targets
from host_client.curvature.errors import UnsupportedLayer
from host_client.curvature.layers import Layer, batch_norms, check_unmixed, trained_layers
from host_client.curvature.losses.softmax import softmax_root
from spu_link.operators import LayerRows


class Call(NamedTuple):
    """What a layer's hook saw: its input, and where in the graph its output is.

    The edge, unlike the output tensor, still means the layer's own output after a ``ReLU(inplace=True)``.
    """

    inputs: Tensor
    output: GradientEdge
    elements: int


class Capture:
    """Hooks on a model that turn each of its training forward passes into the curvature of the loss.

    The curvature is the generalised Gauss–Newton matrix (for a softmax the Fisher matrix) of the trained parameters,
    F = AᵀA with A = SᵀJ / √b, where J is the Jacobian of the logits and S Sᵀ = diag p − p pᵀ (see `softmax_root`). For
    a criterion that sums over the batch the 1/√b is left out. It depends on the logits alone, so it is complete before
    the loss is computed, and is exact: F is the Hessian of the loss but for the curvature of the model itself.

    A forward pass counts as training when the model is in training mode and gradients are enabled; others pass
    untouched. The operator shares memory with the layers' inputs: do not overwrite a batch before its step is done.

    Args:
        model: its trained layers are Linear and Conv2d, each called once a forward pass, and used in no other way; what
            lies between them is free, so long as samples do not mix. Its output, logits of shape (b, d), is what the
            criterion takes. Which parameters are trained is looked at once, here.
        criterion: ``nn.CrossEntropyLoss`` with default options but for ``reduction``; targets are class indices, or
            probabilities that sum to one.

    Raises:
        UnsupportedLayer: for a layer or a use of it that is not known here; also later, in the forward pass.
        UnsupportedCriterion: for another criterion or option; also later, for targets that the criterion ignores.
        ValueError: when no parameter requires grad.

    Attributes:
        layers: the trained layers, in the order of ``model.parameters()``.

    Note:
        The model does not keep its capture alive: with the last reference to it (that of the optimizer, say) the hooks
        are gone. Copies of the model are not captured.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        self.model = model
        self.criterion = check_criterion(criterion)
        self.layers = trained_layers(model)
        self._by_module: dict[nn.Module, Layer] = {layer.module: layer for layer in self.layers}
        self._batch_norms = batch_norms(model)
        self._calls: dict[str, Call] | None = None
        self._operator: LayerRows | None = None
        self._differentiated: list[LayerRows] = []
        # A model that is itself a layer has both forward hooks: the layer's comes first.
        record = _WeakHook(self._record)
        handles = [layer.module.register_forward_hook(record, with_kwargs=True) for layer in self.layers]
        handles.append(model.register_forward_pre_hook(_WeakHook(self._begin)))
        handles.append(model.register_forward_hook(_WeakHook(self._finish)))
        handles.append(criterion.register_forward_pre_hook(_check_targets, with_kwargs=True))
        self._remove_hooks = weakref.finalize(self, _remove, handles)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with their dotted paths, in the order of the operator's columns."""
        return [named for layer in self.layers for named in layer.parameters()]

    @property
    def operator(self) -> LayerRows:
        """The curvature at the last training forward pass: b·(d − 1) rows.

        Raises:
            RuntimeError: when there was none.
        """
        if self._operator is None:
            raise RuntimeError(
                "no training forward pass has been captured: call the model in training mode (model.train()) with "
                "gradients enabled, after the optimizer has been made"
            )
        return self._operator

    def operator_of_gradients(self) -> LayerRows:
        """The curvature at the forward pass that the parameters' gradients came back through.

        Raises:
            RuntimeError: when there was no backward pass through a captured forward pass since `forget_gradients`, or
                when there was more than one.
        """
        if len(self._differentiated) > 1:
            raise RuntimeError(
                f"the gradients of {len(self._differentiated)} backward passes have accumulated, and only that of one "
                "has a curvature here: step after each one, or drop gradients with the optimizer's zero_grad()"
            )
        if not self._differentiated:
            self.operator  # noqa: B018 - says so if there was no forward pass either
            raise RuntimeError(
                "no backward pass through the model since the last step: call loss.backward() before step()"
            )
        return self._differentiated[0]

    def forget_gradients(self) -> None:
        """Start over: the parameters' gradients have been used, or set to zero."""
        self._differentiated.clear()

    def close(self) -> None:
        """Remove the hooks and let go of the last operator. The model is as it was."""
        self._remove_hooks()
        self._calls = self._operator = None
        self._differentiated.clear()

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self._calls = None
        if not (model.training and torch.is_grad_enabled()):
            return
        for path, norm in self._batch_norms:
            check_unmixed(path, norm)
        self._operator = None
        self._calls = {}

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if self._calls is None:
            return
        layer = self._by_module[module]
        if layer.path in self._calls:
            raise UnsupportedLayer(
                layer.path, "was called twice in one forward pass; use a layer of its own for each call"
            )
        inputs: Tensor = args[0] if args else kwargs["input"]
        layer.check_input(inputs)
        if not output.requires_grad:
            raise UnsupportedLayer(
                layer.path,
                "was called without gradients, or frozen since the optimizer was made; replace that by a new one",
            )
        self._calls[layer.path] = Call(inputs.detach(), get_gradient_edge(output), output.numel())

    def _finish(self, model: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
        # Taken first, so that no edge keeps the graph alive, whatever happens below.
        calls, self._calls = self._calls, None
        if calls is None:
            return
        self._operator = operator = self._linearise(logits, calls)
        # The operator lives on with the graph of this pass, until a backward pass makes it that of the gradients.
        logits.register_hook(lambda _: self._differentiated.append(operator))

    def _linearise(self, logits: Tensor, calls: dict[str, Call]) -> LayerRows:
        _check_logits(logits)
        for layer in self.layers:
            if layer.path not in calls:
                raise UnsupportedLayer(
                    layer.path, "was not called in this forward pass; freeze it with requires_grad_(False)"
                )
            rows = len(calls[layer.path].inputs)
            if rows != len(logits):
                raise UnsupportedLayer(
                    layer.path, f"was given {rows} rows for {len(logits)} samples; give it one row a sample"
                )
        columns = softmax_root(logits.detach())
        if self.criterion.reduction == "mean":
            columns /= len(logits) ** 0.5
        ordered = [calls[layer.path] for layer in self.layers]
        forms = [
            layer.form(call.inputs, len(columns), call.elements)
            for layer, call in zip(self.layers, ordered, strict=True)
        ]
        kept = backpropagate(
            logits,
            columns,
            [call.output for call in ordered],
            [form.keep for form in forms],
            widest=max(call.elements for call in ordered),
        )
        blocks = []
        for layer, form, cotangents in zip(self.layers, forms, kept, strict=True):
            if cotangents is None:
                raise UnsupportedLayer(
                    layer.path, "does not influence the model's output; freeze it with requires_grad_(False)"
                )
            blocks.append(form.rows(cotangents))
        return LayerRows(blocks)


class _WeakHook:
    """A hook that neither keeps its capture alive nor goes along with a copy of the module, pickled ones included."""

    def __init__(self, method: Callable[..., None] | None) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)

    def __call__(self, *args: Any) -> None:
        method = self._method and self._method()
        if method:
            method(*args)

    def __reduce__(self) -> tuple[type[_WeakHook], tuple[None]]:
        return _WeakHook, (None,)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _check_targets(criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.is_grad_enabled():
        check_targets(args[1] if len(args) > 1 else kwargs["target"])


def _check_logits(logits: object) -> None:
    if not isinstance(logits, Tensor):
        raise UnsupportedLayer("", f"returns {type(logits).__name__}; it must return the logits, of shape (b, d)")
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise UnsupportedLayer(
            "", f"returns logits of shape {tuple(logits.shape)}; only (b, d) with at least two classes is supported"
        )
    if not logits.requires_grad:
        raise UnsupportedLayer("", "returns logits that are cut off from its parameters; do not detach them")
