"""The curvature as K-FAC approximates it, by the library curvlinops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from host_client.curvature import Kind, UnsupportedCriterion, UnsupportedLayer
from host_client.optimizers.replay import RandomState

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
        of: the batches that the losses were computed from, of equal weight for each sample; or what `saved` has given.
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
        of: Sequence[Batch] | Mapping[str, Any],
        *,
        kind: Kind,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        batches = [] if isinstance(of, Mapping) else of
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
        self._factors = library().KFACLinearOperator(
            model,
            criterion,
            self._parameters,
            _Replayed(batches) if batches else [(torch.zeros(1), torch.zeros(1))],  # something it takes to look at
            fisher_type=_FISHER[kind],
            mc_samples=draws if kind == "mc" else 1,
            seed=seed,
            separate_weight_and_bias=False,
            check_deterministic=False,
            num_data=max(1, samples),
            num_per_example_loss_terms=terms // max(1, samples),
        )
        if isinstance(of, Mapping):
            with warnings.catch_warnings():
                # It says that it loads parameters too: they are the model's own.
                warnings.filterwarnings("ignore", "Loading a state dict will overwrite", UserWarning)
                self._factors.load_state_dict({**self._factors.state_dict(), **of})
            return
        with torch.enable_grad():
            self._factors.compute_kronecker_factors()
        called = self.saved()["gradient_covariances"]
        for path, module in model.named_modules():
            if path not in called and any(p is q for p in module.parameters(recurse=False) for q in self._parameters):
                raise UnsupportedLayer(
                    path, "was not called as a module, so K-FAC has no factors of it; see `check_kronecker`"
                )

    def saved(self) -> dict[str, Any]:
        """The factors by layer, as tensors that ``torch.save`` keeps."""
        state = self._factors.state_dict()
        return {name: state[name] for name in ("input_covariances", "gradient_covariances")}

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
