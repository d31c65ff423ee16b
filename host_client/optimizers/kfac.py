"""Kronecker-factored natural gradient descent, with factors by the library curvlinops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Unpack

from torch import Tensor, nn

from host_client.curvature import Check, Criteria
from host_client.curvature.base import BaseCapture, CaptureOptions
from host_client.curvature.kronecker.capture import KroneckerCapture
from host_client.curvature.kronecker.operator import KroneckerFactors
from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.options import NaturalGradientOptions
from host_client.optimizers.ranges import COMMON, SOLVABLE, Ranges
from spu_link.operators import Operator


class KFAC(NaturalGradient):
    """Natural gradient descent with g̃ = (F̃ + λI)⁻¹ ∇ℓ, F̃ the Kronecker-factored approximation of F.

    F̃ has a block A ⊗ B for each layer (Martens and Grosse, arXiv 1503.05671); λ is added to the product, exactly, so
    that it means what it means for the other optimizers. Layers may be `nn.Linear` and `nn.Conv2d` called as modules,
    losses `nn.CrossEntropyLoss`, `nn.MSELoss` and `nn.BCEWithLogitsLoss` of the model's output, without weights. Other
    parameters may be left to Adam by a group. Factors are those of the batch: the library has no running average of
    them. It runs the model once more, with the same random numbers, each time that factors are made.

    The arguments are those of `NaturalGradient`, with damping λ > 0. The curvature is of a kind, not given as a
    function; `curvature_every` says after how many steps factors and their eigenvectors are made anew.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a layer or a loss that K-FAC is not known for.
        LibraryMissing: without curvlinops, saying how to install it.
        ValueError: for a hyperparameter out of its range.
    """

    ranges: ClassVar[Ranges] = {**COMMON, "damping": SOLVABLE}

    def __init__(self, model: nn.Module, criterion: Criteria, **options: Unpack[NaturalGradientOptions]) -> None:
        if callable(options.get("curvature")):
            raise ValueError("Invalid curvature: a function; K-FAC makes its own, 'exact', 'mc' or 'empirical'")
        super().__init__(model, criterion, **options)

    def _make_capture(
        self, model: nn.Module, criterion: Criteria, check: Check, **options: Unpack[CaptureOptions]
    ) -> BaseCapture:
        return KroneckerCapture(model, criterion, **options)

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        assert isinstance(self._operator, KroneckerFactors)
        return [self._operator.solve(drive, self.hyperparameters["damping"])]
