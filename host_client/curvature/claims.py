"""Which uses of the parameters a block has to answer for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from host_client.curvature.layouts import Layout
from host_client.curvature.recorder import Use
from host_client.curvature.sources import Source


@dataclass(frozen=True)
class Claim:
    """One use of one parameter.

    Attributes:
        number: of the use.
        use: the use.
        layout: where the samples lie in its output.
        role: of the parameter in it.
    """

    number: int
    use: Use
    layout: Layout
    role: str

    @property
    def source(self) -> Source:
        """Which part of the parameter it is."""
        return self.use.sources[self.role]

    def whole(self, size: int) -> bool:
        """Whether it is all of a parameter of this size, as it lies in memory."""
        return self.source.numel == size and self.source.contiguous


def claims_of(uses: Sequence[Use], layouts: Sequence[Layout], unruled: Mapping[int, str]) -> dict[int, list[Claim]]:
    """The uses of each parameter that is used, but for those that need another way."""
    claims: dict[int, list[Claim]] = {}
    for number, (use, layout) in enumerate(zip(uses, layouts, strict=True)):
        for role, source in use.sources.items():
            if source.parameter not in unruled:
                claims.setdefault(source.parameter, []).append(Claim(number, use, layout, role))
    return claims


def belong_together(weight: Sequence[Claim], bias: Sequence[Claim], sizes: tuple[int, int]) -> bool:
    """Whether two parameters of these sizes are used as a weight and its bias, everywhere and as a whole."""
    return len(weight) == len(bias) and all(
        w.use is b.use and (w.role, b.role) == ("weight", "bias") and w.whole(sizes[0]) and b.whole(sizes[1])
        for w, b in zip(weight, bias, strict=True)
    )
