"""The curvature as K-FAC approximates it, by the library curvlinops."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from host_client.curvature import Kind, UnsupportedCriterion, UnsupportedLayer
from host_client.curvature.capture import WeakHook
from host_client.optimizers.replay import RandomState, replay

LAYERS = (nn.Linear, nn.Conv2d)
LOSSES = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)

_FISHER: dict[Kind, str] = {"exact": "type-2", "mc": "mc", "empirical": "empirical"}


class Batch(NamedTuple):
    """What a loss was computed from.

    Attributes:
        inputs: the model's one argument, shape (b, …).
        targets: the criterion's, in the same order.
        random: where the generators stood before the forward pass.
    """

    inputs: Tensor
    targets: Tensor
    random: RandomState


class Kronecker:
    """F with a block A ⊗ B for each layer: A the second moment of its inputs, B that of its output cotangents.

    Weight and bias of a layer are one block. Positions of a sample (of a convolution, or of tokens) count as samples of
    their own ("expand", arXiv 2311.00636). Making it runs the model over the batches once more.

    Args:
        model, criterion: whose curvature; see `check_kronecker`.
        parameters: the N trained ones that F is of, in this order.
        batches: what the losses were computed from, of equal weight for each sample.
        kind, draws, seed: ``"exact"``; ``"mc"`` with so many labels drawn for each sample by a generator of its own
            with this seed; or ``"empirical"``.

    Raises:
        UnsupportedLayer: for a layer that was not called as a module, such as the projection inside of attention.
        UnsupportedCriterion: for targets that are left out.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        parameters: Sequence[nn.Parameter],
        batches: Sequence[Batch],
        *,
        kind: Kind,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        linear_operator = library().KFACLinearOperator
        ignored = getattr(criterion, "ignore_index", None)
        if ignored is not None and any(bool((batch.targets == ignored).any()) for batch in batches):
            raise UnsupportedCriterion(
                "ignore_index", "leaves out targets, and K-FAC here counts all; use another method"
            )
        samples = sum(len(batch.inputs) for batch in batches)
        over_classes = isinstance(criterion, nn.CrossEntropyLoss)
        terms = sum((y if over_classes else y[..., 0]).numel() for _, y, _ in batches)
        self._parameters = list(parameters)
        self._solver: tuple[float, Any] | None = None
        with torch.enable_grad():
            self._factors = linear_operator(
                model,
                criterion,
                self._parameters,
                _Replayed(batches),
                fisher_type=_FISHER[kind],
                mc_samples=draws if kind == "mc" else 1,
                seed=seed,
                separate_weight_and_bias=False,
                check_deterministic=False,
                num_data=samples,
                num_per_example_loss_terms=terms // samples,
            )
            self._factors.compute_kronecker_factors()
        called = self._factors.state_dict()["gradient_covariances"]
        for path, module in model.named_modules():
            if path not in called and any(p is q for p in module.parameters(recurse=False) for q in self._parameters):
                raise UnsupportedLayer(
                    path, "was not called as a module, so K-FAC has no factors of it; see `check_kronecker`"
                )

    def curvature(self, v: Tensor) -> Tensor:
        """F v for `v` of shape (N,)."""
        product: Tensor = self._factors @ v
        return product

    def solve(self, drive: Tensor, damping: float) -> Tensor:
        """(F + λI)⁻¹ b, exactly for this F, from eigenvectors of the factors that are kept for the next b.

        Args:
            drive: b, shape (N,).
            damping: λ > 0; another one than last time takes the eigenvectors anew.
        """
        if self._solver is None or self._solver[0] != damping:
            inverse = library().KFACInverseLinearOperator
            self._solver = damping, inverse(self._factors, damping=damping, use_exact_damping=True)
        solution: Tensor = self._solver[1] @ drive
        return solution


class _Replayed:
    """Batches as the library takes them, each with the random numbers of its forward pass."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._batches:
            batch.random.restore()
            yield batch.inputs, batch.targets


def library() -> Any:
    """curvlinops, imported when it is needed.

    Raises:
        ImportError: saying how to install it.
    """
    try:
        with warnings.catch_warnings():
            # Of a library that curvlinops imports; nobody here can do anything about it.
            warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
            import curvlinops
    except ImportError as error:
        raise ImportError("K-FAC needs curvlinops: pip install 'tngd-spu[kfac]'") from error
    return curvlinops


def check_kronecker(model: nn.Module, criterion: nn.Module, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Refuse what the library has no factors for: other layers than linear ones and 2-d convolutions, or other losses.

    Args:
        model: whose layers are called as modules, each parameter used by one.
        criterion: called on the model's output itself.
        parameters: the trained ones that K-FAC is for, with their paths.

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


class KroneckerCapture:
    """Hooks on a model and its criterion that keep the batches that the gradients come from, for factors made of them.

    It stands where a `Capture` does. Only training forward passes count, and the loss must be the criterion of the
    model's output itself.

    Args:
        model, criterion: see `check_kronecker`.
        parameters: the trained ones that F is of, with their paths.
        kind, draws: see `Kronecker`.

    Attributes:
        paused: while true, forward passes are not recorded.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: see `check_kronecker`; also later, at the criterion.
        ImportError: without curvlinops.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        kind: Kind,
        draws: int = 1,
    ) -> None:
        check_kronecker(model, criterion, parameters)
        library()
        self.paused = False
        self._model, self._criterion, self._kind, self._draws = model, criterion, kind, draws
        self._parameters = [parameter for _, parameter in parameters]
        self._before: RandomState | None = None
        self._pass: tuple[RandomState, Tensor, weakref.ref[Tensor]] | None = None
        self._differentiated: list[Batch] = []
        handles = [
            model.register_forward_pre_hook(WeakHook(self._begin), with_kwargs=True),
            model.register_forward_hook(WeakHook(self._finish), with_kwargs=True),
            criterion.register_forward_hook(WeakHook(self._criterion_called), with_kwargs=True),
        ]
        self._remove_hooks = weakref.finalize(self, _remove, handles)

    def operator_of_gradients(self) -> Kronecker:
        """F of the batches whose losses have been differentiated; of several, over all their samples.

        Raises:
            RuntimeError: when there is none.
            UnsupportedLayer, UnsupportedCriterion: see `Kronecker`.
        """
        if not self._differentiated:
            raise RuntimeError(
                "no backward pass through a loss since the last step: call the model in training mode, the criterion "
                "that the optimizer was given on its output, and loss.backward(), before step()"
            )
        seed = int(torch.randint(2**31, ())) if self._kind == "mc" else 0
        paused, self.paused = self.paused, True
        try:
            with replay(self._model, self._differentiated[0].random):
                return Kronecker(
                    self._model,
                    self._criterion,
                    self._parameters,
                    self._differentiated,
                    kind=self._kind,
                    draws=self._draws,
                    seed=seed,
                )
        finally:
            self.paused = paused

    def forget_gradients(self) -> None:
        """Start over: the parameters' gradients have been used, or set to zero."""
        self._differentiated.clear()

    def close(self) -> None:
        """Remove the hooks and let go of the batches."""
        self._remove_hooks()
        self._before = self._pass = None
        self._differentiated.clear()

    def _counts(self) -> bool:
        return self._model.training and torch.is_grad_enabled() and not self.paused

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
        if (args[0] if args else kwargs["input"]) is not output():
            raise UnsupportedCriterion(
                "", "was called on something else than the model's last output itself, which K-FAC here is not for"
            )
        batch = Batch(inputs, args[1] if len(args) > 1 else kwargs["target"], random)
        loss.register_hook(partial(_note, self._differentiated, batch))


def _note(differentiated: list[Batch], batch: Batch, factor: Tensor) -> None:
    differentiated.append(batch)


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
