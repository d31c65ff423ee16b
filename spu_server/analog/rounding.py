"""Rounding to codes, plain or dithered.

Plain rounding is always wrong in the same way, so averaging does not help. With R dithered roundings, the r-th of which
rounds up from the threshold (r + ½)/R on, in an order that differs from element to element, their mean is the value
rounded R times finer: an error ε becomes ε/R, plus what is of second order in a solution, ε² (Aifer, Melanson,
Donatella, Crooks, Ahle, Coles: "Error mitigation for thermodynamic computing", arXiv 2401.16231, who average over
programmed values in the same sense).
"""

from __future__ import annotations

import torch
from torch import Tensor


def codes(bits: int) -> int:
    """The largest code of so many bits, 2^(bits−1) − 1.

    Raises:
        ValueError: below two bits, where no code but 0 is left.
    """
    if bits < 2:
        raise ValueError(f"{bits} bits; a code with a sign needs at least 2")
    return (1 << (bits - 1)) - 1


def round_to_codes(values: Tensor, largest: Tensor | float, bits: int, threshold: Tensor | float = 0.5) -> Tensor:
    """Round values to the nearest code times `largest`/2^(bits−1).

    Args:
        values: between −largest and largest.
        largest: the value of the largest code; a tensor gives each leading index its own.
        bits: resolution.
        threshold: the part of a code, 0 to 1, from which on a value is rounded up; ½ is plain rounding.
    """
    top = codes(bits)
    step = torch.as_tensor(largest, dtype=values.dtype, device=values.device) / top
    step = torch.where(step > 0, step, torch.ones_like(step))
    scaled = values / step
    # A value that is a code up to rounding stays that code whatever the threshold.
    nearest = scaled.round()
    exact = (scaled - nearest).abs() < 1e-6
    return torch.where(exact, nearest, (scaled + (1.0 - threshold)).floor()).clamp_(-top, top) * step


class Dither:
    """Thresholds of R roundings, drawn once: the same element meets each threshold exactly once in R rounds.

    Args:
        roundings: R ≥ 1; 1 is plain rounding.
        seed: of the order in which an element meets its thresholds.
    """

    def __init__(self, roundings: int, seed: int) -> None:
        self.roundings = roundings
        self.seed = seed

    def threshold(self, shape: torch.Size, number: int, place: int) -> Tensor | float:
        """Thresholds of round `number` for the tensor `place`."""
        if self.roundings == 1:
            return 0.5
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + place) % 2**63)
        # An order of its own for each element: each of the R thresholds is taken by sorting R random numbers, which a
        # random start and a random stride prime to R does as well, without R times the memory.
        start = torch.randint(self.roundings, shape, generator=generator)
        strides = torch.tensor([s for s in range(1, self.roundings + 1) if _prime_to(s, self.roundings)])
        stride = strides[torch.randint(len(strides), shape, generator=generator)]
        return ((start + number * stride) % self.roundings + 0.5).double() / self.roundings


def _prime_to(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1
