"""Errors of a curvature that is programmed into arrays of resistors.

**What the codes are applied to.** The paper's device holds the rows of A one by one, as does `holds="rows"` here: every
element of A has its own resistor, its own code and its own error. With `holds="factors"`, the default, the arrays hold
what an upload carries, a layer's inputs and cotangents, and the codes and errors are theirs: an array of far fewer
resistors (see `timing`), whose errors are shared by all elements of A that a resistor takes part in, so that they
average out less. Codes have one scale for each leading index (a sample, a column of cotangents, a row), as
the 16-bit codes on the wire; a matrix given in full has one scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spu_link.operators import Dense, FactorOperator, Operator, Rows
from spu_server.analog.rounding import Dither, codes, round_to_codes


@dataclass(frozen=True)
class Programming:
    """Accuracy of conductances with respect to the values asked for.

    Source: bits and separate arrays as in arXiv 2405.13817; mismatch as in Pelgrom, Duinmaijer, Welbers, IEEE J.
    Solid-State Circuits 24 (1989) 1433.
    """

    bits: int | None = None
    """Resolution of a programmed conductance; codes with a sign (a differential pair). None: exact. Paper: 16."""

    mismatch: float = 0.0
    """Relative error of each resistor, rms, normally distributed, fixed by the device's seed. 0.001 to 0.01 is usual on
    one chip."""

    separate: bool = False
    """True if A and Aᵀ are separate arrays, each with its own mismatch, as in the paper. The drift matrix BᵀA + λI
    is then not symmetric. A matrix given in full is symmetric exactly if not separate."""

    holds: Literal["factors", "rows"] = "factors"
    """True if the arrays hold the factors of an upload, else the rows of A in full (m·N resistors; small problems)."""

    def __post_init__(self) -> None:
        if self.bits is not None:
            codes(self.bits)

    @property
    def exact(self) -> bool:
        """True if nothing is changed."""
        return self.bits is None and self.mismatch == 0.0

    def arrays(self, operator: Operator, seed: int, dither: Dither, number: int) -> tuple[Operator, Operator]:
        """The operator as the forward array A and the backward array (for Aᵀ) hold it; one object where they agree.

        Args:
            operator: what was asked for.
            seed: of the device's mismatch.
            dither: thresholds of the roundings.
            number: which rounding this is.
        """
        if self.exact:
            return operator, operator
        if self.holds == "rows" and isinstance(operator, FactorOperator) and not isinstance(operator, Rows):
            operator = Rows(operator.dense())
        symmetric = isinstance(operator, Dense)
        forward = operator.map(_Array(self, seed, 0, dither, number, symmetric))
        if not self.separate or self.mismatch == 0.0 or symmetric:
            return forward, forward
        return forward, operator.map(_Array(self, seed, 1, dither, number, symmetric))


class _Array:
    """Errors of one array in the tensors of an operator, called on one after the other.

    Args:
        programming: how exactly.
        seed: of the device.
        array: 0 for A, 1 for Aᵀ.
        dither, number: how the codes are rounded; both arrays take the same codes.
        whole: whether the tensor is a symmetric matrix, with one scale.
    """

    def __init__(
        self, programming: Programming, seed: int, array: int, dither: Dither, number: int, whole: bool
    ) -> None:
        self._programming = programming
        self._seed = seed
        self._array = array
        self._dither = dither
        self._number = number
        self._whole = whole
        self._place = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        place, self._place = self._place, self._place + 1
        programming = self._programming
        if programming.bits is not None:
            threshold = self._dither.threshold(tensor.shape, self._number, place)
            if self._whole and isinstance(threshold, Tensor):
                threshold = _mirror(threshold)
            tensor = round_to_codes(tensor, self._largest(tensor), programming.bits, threshold).to(tensor.dtype)
        if programming.mismatch:
            generator = torch.Generator().manual_seed(_mix_seeds(self._seed, self._array, place))
            error = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if self._whole and not programming.separate:
                error = _mirror(error)
            tensor = tensor * (1.0 + programming.mismatch * error)
        return tensor

    def _largest(self, tensor: Tensor) -> Tensor:
        if self._whole:
            return tensor.abs().max()
        return tensor.abs().flatten(1).amax(1).reshape(-1, *[1] * (tensor.dim() - 1))


def _mirror(matrix: Tensor) -> Tensor:
    """Return the symmetric matrix with the lower triangle of a given one."""
    return matrix.tril() + matrix.tril(-1).T


def _mix_seeds(*numbers: int) -> int:
    """Return one seed from several."""
    return math.prod(n + p for n, p in zip(numbers, (1_000_003, 7_919, 104_729), strict=True)) % 2**63
