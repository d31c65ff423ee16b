"""Sizes at which iterations are measured, and the exponents that Table 1 of arXiv 2405.13817 states for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from spu_lab.studies.iteration_cost import Size
from spu_lab.studies.iteration_methods import METHODS

Variable: TypeAlias = Literal["parameters", "batch", "outputs"]

SYMBOLS: Final[Mapping[Variable, str]] = {"parameters": "N", "batch": "b", "outputs": "d_z"}

Quantity: TypeAlias = Literal["time", "memory"]

Exponents: TypeAlias = tuple[int, int, int]
"""Exponents in N, b and d_z."""


@dataclass(frozen=True)
class Stated:
    """Row of a method in the paper's table.

    Attributes:
        time: as printed there.
        memory: likewise.
        time_exponents: of the term that is the largest one in the sweeps of this method.
        memory_exponents: likewise.
    """

    time: str
    memory: str
    time_exponents: Exponents
    memory_exponents: Exponents


_FIRST_ORDER = Stated("O(bN)", "O(N)", (1, 1, 0), (1, 0, 0))
_CG = Stated("O(cbN)", "O(N)", (1, 1, 0), (1, 0, 0))
_WOODBURY = Stated("O(b² d_z² N + b³ d_z³)", "O(b d_z N + b² d_z²)", (1, 2, 2), (1, 1, 1))
_TNGD = Stated("O(b d_z N + t)", "O(b d_z N + b² d_z²)", (1, 1, 1), (1, 1, 1))

STATED: Final[Mapping[str, Stated]] = {
    "SGD": _FIRST_ORDER,
    "Adam": _FIRST_ORDER,
    "NGD": Stated("O(N³ + b d_z N²)", "O(N²)", (3, 1, 1), (2, 0, 0)),
    "NGD-CG": _CG,
    "NGD-CG, structured": _CG,
    "NGD-Woodbury": _WOODBURY,
    "NGD-Woodbury, structured": _WOODBURY,
    "TNGD, device": _TNGD,
    "TNGD, device, structured": _TNGD,
}
"""Rows by label of the method. The paper's table has no K-FAC, and states nothing of an emulator."""


@dataclass(frozen=True)
class Sweeps:
    """Sizes of which one number is varied in each sequence.

    Attributes:
        parameters: where N is.
        batch: where b is.
        outputs: where d_z is.
        term: the term of the stated runtime that is the largest one there, and why, in words.
    """

    parameters: Sequence[Size]
    batch: Sequence[Size]
    outputs: Sequence[Size]
    term: str = ""

    @property
    def sizes(self) -> list[Size]:
        """All of them, each once."""
        return list(dict.fromkeys(size for variable in SYMBOLS for size in self.of(variable)))

    def of(self, variable: Variable) -> Sequence[Size]:
        """Return the sizes in which this variable is varied."""
        sizes: Sequence[Size] = getattr(self, variable)
        return sizes


@dataclass(frozen=True)
class Plan:
    """Measurements of the experiment.

    Attributes:
        sweeps: those of the table, by label of the method.
        figure: those of the figure, likewise; b is not varied there.
        mnist: labels of the methods that are measured on the reference network for MNIST.
        repeats: seeds.
        seconds_each: of timed iterations with each seed.
    """

    sweeps: Mapping[str, Sweeps]
    figure: Mapping[str, Sweeps]
    mnist: Sequence[str]
    repeats: int
    seconds_each: float

    def sizes_of(self, method: str) -> list[Size]:
        """Return the sizes at which a method is measured, each once."""
        return list(dict.fromkeys([*self.sweeps[method].sizes, *self.figure[method].sizes]))


def _over_n(values: Sequence[int], batch: int, outputs: int) -> list[Size]:
    return [Size(n, batch, outputs) for n in values]


def _over_batch(n: int, values: Sequence[int], outputs: int) -> list[Size]:
    return [Size(n, batch, outputs) for batch in values]


def _over_outputs(n: int, batch: int, values: Sequence[int]) -> list[Size]:
    return [Size(n, batch, outputs) for outputs in values]


_FIGURE = Sweeps(
    _over_n((10_000, 18_000, 32_000, 56_000, 100_000), 32, 20), (), _over_outputs(10_000, 32, (10, 20, 45, 100))
)
_FIGURE_NGD = replace(_FIGURE, parameters=_over_n((2_500, 5_000, 10_000), 32, 20))

_FEW_ROWS = replace(
    _FIGURE,
    batch=_over_batch(10_000, (16, 32, 64, 128), 20),
    term="that of N, since N > b d_z",
)
_LARGE_BATCHES = Sweeps(
    _over_n((100_000, 200_000, 400_000, 800_000), 256, 10),
    _over_batch(100_000, (256, 512, 1024, 2048), 10),
    _over_outputs(100_000, 256, (10, 20, 40, 80)),
    "bN, since b is so large that it outweighs the calls themselves",
)
_PRODUCTS = Sweeps(
    _over_n((50_000, 100_000, 200_000, 400_000), 128, 20),
    _over_batch(100_000, (32, 64, 128, 256), 20),
    _over_outputs(100_000, 128, (10, 20, 40, 80)),
    "cbN, since bN is so large that it outweighs the calls themselves",
)
_DENSE = Sweeps(
    _over_n((1_500, 2_500, 4_500, 8_000), 4, 10),
    _over_batch(500, (64, 128, 256, 512), 20),
    _over_outputs(1_000, 128, (10, 20, 40, 80)),
    "N³ where N is varied, since N > 37 b d_z there, and b d_z N² elsewhere, since b d_z > N",
)

_SPECIAL = {
    "SGD": _LARGE_BATCHES,
    "Adam": _LARGE_BATCHES,
    "NGD": _DENSE,
    "NGD-CG": _PRODUCTS,
    "NGD-CG, structured": _PRODUCTS,
}

FULL: Final = Plan(
    sweeps={label: _SPECIAL.get(label, _FEW_ROWS) for label in METHODS},
    figure={label: _FIGURE_NGD if label == "NGD" else _FIGURE for label in METHODS},
    mnist=("Adam", "TNGD, device", "TNGD, device, structured"),
    repeats=5,
    seconds_each=0.3,
)
"""The long form."""

_TINY = Sweeps(_over_n((500, 1_000, 2_000), 8, 8), _over_batch(1_000, (8, 16), 8), _over_outputs(1_000, 8, (8, 16)))
_TINY_N = Sweeps(_TINY.parameters[1:], (), ())

MINIATURE: Final = Plan(
    sweeps={label: _TINY_N if METHODS[label].device else _TINY for label in METHODS},
    figure={label: _TINY_N if METHODS[label].device else _TINY for label in METHODS},
    mnist=FULL.mnist,
    repeats=2,
    seconds_each=0.02,
)
"""The plan of ``--quick``; through a daemon along N alone, since each point has a daemon of its own."""
