"""Losses: one case for each, and for each option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.cases.case import Case
from tests.cases.shared import TOKENS, mlp
from tests.cases.targets import binary, partly_ignored, probabilities, real


def _sequence(classes: int = 3) -> nn.Module:
    """Scores of shape (b, s, d)."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes))


def _classes_second(model: nn.Module, x: Tensor) -> Tensor:
    """(b, s, d) as (b, d, s), which the cross-entropy takes."""
    scores: Tensor = model(x)
    return scores.transpose(1, 2)


def _flattened(model: nn.Module, x: Tensor) -> Tensor:
    """(b, s, d) as (b·s, d), as most training loops do it."""
    scores: Tensor = model(x)
    return scores.flatten(0, 1)


def _cross_entropy(**options: Any) -> Callable[..., nn.Module]:
    return lambda reduction: nn.CrossEntropyLoss(reduction=reduction, **options)


def _weighted_bce(reduction: str) -> nn.Module:
    return nn.BCEWithLogitsLoss(
        reduction=reduction, pos_weight=torch.tensor([0.5, 2.0, 3.0]), weight=torch.tensor([1.0, 0.2, 2.0])
    )


WEIGHTS = torch.tensor([0.2, 1.0, 3.0])
"""Of three classes."""

LOSSES = [
    Case("class weights", mlp, (5,), criterion=_cross_entropy(weight=WEIGHTS)),
    Case("class weights, sum", mlp, (5,), criterion=_cross_entropy(weight=WEIGHTS), reduction="sum"),
    Case("label smoothing", mlp, (5,), criterion=_cross_entropy(label_smoothing=0.2)),
    Case("class weights and label smoothing", mlp, (5,), criterion=_cross_entropy(weight=WEIGHTS, label_smoothing=0.2)),
    Case("ignored targets", mlp, (5,), targets=partly_ignored),
    Case("ignored targets, sum", mlp, (5,), targets=partly_ignored, reduction="sum"),
    Case("ignored class and weights", mlp, (5,), criterion=_cross_entropy(ignore_index=1, weight=WEIGHTS)),
    Case("probabilities as targets", mlp, (5,), targets=probabilities),
    Case(
        "probabilities, weights, smoothing",
        mlp,
        (5,),
        targets=probabilities,
        criterion=_cross_entropy(weight=WEIGHTS, label_smoothing=0.2),
    ),
    *[
        Case(
            f"{name}, {reduction}{'' if options is None else ', ' + options}",
            _sequence,
            TOKENS,
            call=call,
            reduction=reduction,
            batch=3,
            **extra,
        )
        for name, call in [("sequence", _classes_second), ("flattened sequence", _flattened)]
        for reduction in ("mean", "sum")
        for options, extra in [
            (None, {}),
            ("weights and ignored", {"criterion": _cross_entropy(weight=WEIGHTS), "targets": partly_ignored}),
            ("probabilities", {"targets": probabilities}),
        ]
    ],
    Case("pictures of classes", lambda: nn.Conv2d(4, 3, 3), (4, 4, 3)),
    Case("binary", mlp, (5,), criterion=nn.BCEWithLogitsLoss, targets=binary),
    Case("binary, sum", mlp, (5,), criterion=nn.BCEWithLogitsLoss, targets=binary, reduction="sum"),
    Case("binary with weights", mlp, (5,), criterion=_weighted_bce, targets=binary),
    Case("one binary output", lambda: nn.Linear(5, 1), (5,), criterion=nn.BCEWithLogitsLoss, targets=binary),
    Case("binary sequence", _sequence, TOKENS, batch=3, criterion=nn.BCEWithLogitsLoss, targets=binary),
    Case("squared error", mlp, (5,), criterion=nn.MSELoss, targets=real),
    Case("squared error, sum", mlp, (5,), criterion=nn.MSELoss, targets=real, reduction="sum"),
    Case("one real output", lambda: nn.Linear(5, 1), (5,), criterion=nn.MSELoss, targets=real),
    Case("squared error of tokens", _sequence, TOKENS, batch=3, criterion=nn.MSELoss, targets=real),
    Case(
        "squared error of a picture", lambda: nn.ConvTranspose2d(4, 1, 2), (4, 2, 2), criterion=nn.MSELoss, targets=real
    ),
]
