"""Kronecker factors of a model's layers, by the library curvlinops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from host_client.curvature import Kind, UnsupportedCriterion, UnsupportedLayer
from host_client.curvature.kronecker.operator import KroneckerFactors, LayerFactors
from host_client.random_state import RandomState

LAYERS = (nn.Linear, nn.Conv2d)

_FISHER: dict[Kind, str] = {"exact": "type-2", "mc": "mc", "empirical": "empirical"}


class ReplayedBatch(NamedTuple):
    """Inputs of a loss.

    Attributes:
        inputs: the model's one argument, shape (b, …).
        targets: the criterion's, in the same order.
        random: states of the generators before the forward pass.
    """

    inputs: Tensor
    targets: Tensor
    random: RandomState


def kronecker(
    model: nn.Module,
    criterion: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[ReplayedBatch],
    *,
    kind: Kind,
    draws: int = 1,
    seed: int = 0,
    unused: Sequence[nn.Parameter] = (),
) -> KroneckerFactors:
    """K-FAC's approximation of the curvature of some losses; it runs the model over the batches once more.

    Positions of a sample (of a convolution, or of tokens) count as samples of their own ("expand", arXiv 2311.00636).

    Args:
        model, criterion: whose curvature; see `check_kronecker`.
        parameters: the N trained ones that F is of, in this order.
        batches: what the losses were computed from, of equal weight for each sample.
        kind, draws, seed: ``"exact"``; ``"mc"`` with so many labels drawn for each sample by a generator of its own
            with this seed; or ``"empirical"``.
        unused: those of the parameters that the losses did not use; they get no block.

    Raises:
        UnsupportedLayer: for a layer that was not called as a module, such as the projection inside of attention.
        UnsupportedCriterion: for targets that are left out.
    """
    ignored = getattr(criterion, "ignore_index", None)
    if ignored is not None and any(bool((batch.targets == ignored).any()) for batch in batches):
        raise UnsupportedCriterion("ignore_index", "leaves out targets, and K-FAC here counts all; use another method")
    samples = sum(len(batch.inputs) for batch in batches)
    over_classes = isinstance(criterion, nn.CrossEntropyLoss)
    terms = sum((y if over_classes else y[..., 0]).numel() for _, y, _ in batches)
    left_out = {id(parameter) for parameter in unused}
    operator = library().KFACLinearOperator(
        model,
        criterion,
        [parameter for parameter in parameters if id(parameter) not in left_out],
        _Replayed(batches),
        fisher_type=_FISHER[kind],
        mc_samples=draws if kind == "mc" else 1,
        seed=seed,
        separate_weight_and_bias=False,
        check_deterministic=False,
        num_data=samples,
        num_per_example_loss_terms=terms // samples,
    )
    with torch.enable_grad():
        operator.compute_kronecker_factors()
    state = operator.state_dict()
    inputs, cotangents = state["input_covariances"], state["gradient_covariances"]
    places = {id(parameter): place for place, parameter in enumerate(parameters) if id(parameter) not in left_out}
    blocks = []
    for path, layer in model.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        positions = tuple(places[id(p)] for p in (layer.weight, layer.bias) if id(p) in places)
        if not positions:
            continue
        if path not in cotangents:
            raise UnsupportedLayer(
                path, "was not called as a module, so K-FAC has no factors of it; use another method"
            )
        second = cotangents[path]
        blocks.append(LayerFactors(positions, inputs.get(path, second.new_ones(1, 1)), second))
    return KroneckerFactors(blocks, [parameter.numel() for parameter in parameters])


class _Replayed:
    """Batches as the library takes them, each with the random numbers of its forward pass."""

    def __init__(self, batches: Sequence[ReplayedBatch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._batches:
            batch.random.restore()
            yield batch.inputs, batch.targets


class LibraryMissing(ImportError):
    """An optional dependency that is not installed; the message says how to install it."""

    remedy: ClassVar[str] = "install it: pip install 'tngd-spu[kfac]'"


def library() -> Any:
    """curvlinops, imported when it is needed.

    Raises:
        LibraryMissing: saying how to install it.
    """
    try:
        with warnings.catch_warnings():
            # Of a library that curvlinops imports; nobody here can do anything about it.
            warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
            import curvlinops
    except ImportError as error:
        raise LibraryMissing("K-FAC needs curvlinops; pip install 'tngd-spu[kfac]'") from error
    return curvlinops
