"""Models, losses and data that every test of the curvature runs over: one case for each way a layer can be used."""

from tests.cases.case import Case, Problem
from tests.cases.convolutions import CONVOLUTION
from tests.cases.layers import EMBEDDING, FROZEN, LINEAR, NORMALISATION, PARAMETERS
from tests.cases.losses import LOSSES
from tests.cases.models import ATTENTION, FALLBACK, RANDOM, SHARING, TRANSFORMERS

__all__ = ["CASES", "Case", "Problem", "named"]

CASES = [
    *LINEAR,
    *CONVOLUTION,
    *EMBEDDING,
    *NORMALISATION,
    *PARAMETERS,
    *ATTENTION,
    *TRANSFORMERS,
    *SHARING,
    *FALLBACK,
    *FROZEN,
    *LOSSES,
    *RANDOM,
]
"""All cases."""


def named(name: str) -> Case:
    """The case of this name."""
    return next(case for case in CASES if case.name == name)
