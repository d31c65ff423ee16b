"""Formats of the values of factors on the wire: as floats of some width, or as 16-bit codes with scales.

The daemon decodes what is narrower than float32 to float32 when it builds the program; the error a precision causes in
the solution is measured in ``docs/decisions/0010-precision-on-the-wire.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.names import Precision as Precision
from spu_link.values import check_finite

PRECISIONS: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int16": torch.int16,
}

NARROW: dict[torch.dtype, Precision] = {
    dtype: precision for precision, dtype in PRECISIONS.items() if dtype.itemsize < torch.float32.itemsize
}
"""Element types that are decoded to float32."""

CODES = 32767
"""The largest code."""

BLOCK = 1 << 17
"""Elements that are encoded at a time: what is between the steps stays in the processor's cache."""


def rounding(precision: Precision | None) -> float:
    """Largest error of a float32 value after travelling in a precision, as a fraction of the tensor's largest value.

    What float32 itself rounds on the way comes on top, 1 % more for codes.
    """
    if precision is None or precision == "float32":
        return 0.0
    return 0.5 / CODES if precision == "int16" else torch.finfo(PRECISIONS[precision]).eps / 2


@dataclass(frozen=True)
class Encoded:
    """A tensor as it travels, all of it where the tensor was, so that nobody waits for a value before it is sent.

    Attributes:
        values: in the precision's element type.
        largest: largest magnitude for each scale, for `check_largest`; None where every value fits.
        scales: of the codes, float32, one for each leading index or one for all; None where there are no codes.
    """

    values: Tensor
    largest: Tensor | None = None
    scales: Tensor | None = None


def encode(tensor: Tensor, precision: Precision, *, alike: bool = False) -> Encoded:
    """A tensor of floats as it travels, where possible without a copy; `check_largest` then says whether it fits.

    Args:
        tensor: of two or more dimensions.
        precision: how.
        alike: whether all codes have the same scale, which keeps a matrix symmetric.
    """
    dtype = PRECISIONS[precision]
    if tensor.dtype == dtype:
        return Encoded(tensor)
    flat = tensor.reshape(1 if alike or precision != "int16" else len(tensor), -1)
    largest = torch.maximum(flat.amax(1), -flat.amin(1))  # vectorised, unlike aminmax(dim=1)
    if precision != "int16":
        return Encoded(tensor.to(dtype), largest)
    # Towards 0, so that no code times its scale is more than what it stands for.
    scales = torch.nextafter((largest / CODES).float(), torch.zeros((), device=largest.device))
    scales.clamp_(min=torch.finfo(torch.float32).tiny)
    factors = scales.to(tensor.dtype).reciprocal()[:, None]
    codes = torch.empty(flat.shape, dtype=torch.int16, device=tensor.device)
    step = max(1, BLOCK // len(flat))
    for some, out in zip(flat.split(step, 1), codes.split(step, 1), strict=True):
        out.copy_((some * factors).round_())
    return Encoded(codes.view(tensor.shape), largest, scales)


def check_largest(field: str, tensor: Tensor, largest: Tensor, precision: Precision) -> None:
    """Refuse a tensor that is not finite, or too large for a precision.

    Args:
        field: its name in errors.
        tensor: as it was before `encode`.
        largest: what `encode` found.
        precision: how it travels.

    Raises:
        InvalidProgram: naming `field`, and a precision that would do.
    """
    limit = torch.finfo(torch.float32 if precision == "int16" else PRECISIONS[precision]).max
    if bool((largest <= limit).all()):
        return
    check_finite(field, tensor)
    magnitude = float(largest.max())
    way_out = "int16 or bfloat16" if limit < torch.finfo(torch.bfloat16).max else "None, which keeps the dtype"
    raise InvalidProgram(
        f"{field} has a value of magnitude {magnitude:.4g}, and {precision} ends at {limit:.4g}; "
        f"send it with precision {way_out}",
        field=field,
        found=magnitude,
        expected=f"at most {limit:.4g}",
    )


def decode(tensor: Tensor, scales: Sequence[float]) -> Tensor:
    """The float32 tensor behind a narrower one; wider ones and indices stay as they are."""
    if tensor.dtype not in NARROW:
        return tensor
    values = tensor.to(torch.float32)
    if tensor.dtype == torch.int16:
        values.view(len(scales), -1).mul_(torch.tensor(scales, dtype=torch.float32)[:, None])
    return values
