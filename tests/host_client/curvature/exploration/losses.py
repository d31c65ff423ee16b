"""Random criteria, with their targets and what the two kinds of curvature need of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.host_client.curvature.exploration.brief import Brief, rarely

Criterion: TypeAlias = Callable[..., Tensor]

MODULES: dict[str, type[nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
    "mse_loss": nn.MSELoss,
    "huber_loss": nn.HuberLoss,
}
FUNCTIONS = {name: getattr(F, name) for name in MODULES}


@dataclass(frozen=True, repr=False)
class Loss(Brief):
    """A criterion.

    Attributes:
        name: of the function.
        width: features of z.
        reduction: ``"mean"`` or ``"sum"``.
        weighted: cross-entropy with class weights; the binary one with `pos_weight`.
        ignoring: some targets of the cross-entropy are ignored.
        smoothing: `label_smoothing`.
        probabilities: as targets of the cross-entropy.
        function: the function is the criterion, not the module.
        keywords: it is called with keyword arguments.
    """

    name: str
    width: int
    reduction: str = "mean"
    weighted: bool = False
    ignoring: bool = False
    smoothing: float = 0.0
    probabilities: bool = False
    function: bool = False
    keywords: bool = False

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of z that it can take, see `Head`."""
        return ("rows", "rows", "second") if self.name == "cross_entropy" else ("last", "rows", "flat", "second")

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the module, or of the function."""
        options: dict[str, Any] = {"reduction": self.reduction}
        weight = torch.linspace(0.5, 1.5, self.width, dtype=torch.float64)
        if self.name == "cross_entropy":
            options |= {"weight": weight if self.weighted else None, "label_smoothing": self.smoothing}
        if self.name == "binary_cross_entropy_with_logits" and self.weighted:
            options["pos_weight"] = weight.new_tensor(2.0)
        return options

    def criterion(self) -> Any:
        """Return the module or the function to give to a capture."""
        return FUNCTIONS[self.name] if self.function else MODULES[self.name](**self.options())

    def call(self, criterion: Any, z: Tensor, y: Tensor) -> Tensor:
        """Call the criterion that `criterion` returned."""
        options = self.options() if self.function else {}
        result: Tensor = criterion(input=z, target=y, **options) if self.keywords else criterion(z, y, **options)
        return result

    def targets(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Draw targets for an input of this shape."""
        if self.name == "cross_entropy":
            shape = (z.shape[0], *z.shape[2:])
            if self.probabilities:
                return torch.randn(z.shape, generator=generator, dtype=z.dtype).softmax(1)
            y = torch.randint(self.width, shape, generator=generator)
            if self.ignoring:
                ignored = torch.rand(shape, generator=generator) < 0.4
                ignored.view(-1)[0] = False
                y[ignored] = -100
            return y
        if self.name == "binary_cross_entropy_with_logits":
            return torch.rand(z.shape, generator=generator, dtype=z.dtype).round()
        return torch.randn(z.shape, generator=generator, dtype=z.dtype)

    def value(self, z: Tensor, y: Tensor, reduction: str | None = None) -> Tensor:
        """Return the loss, without calling the criterion."""
        result: Tensor = FUNCTIONS[self.name](z, y, **self.options() | ({"reduction": reduction} if reduction else {}))
        return result

    def divisor(self, z: Tensor, y: Tensor) -> float:
        """Return what the reduction divides the sum by."""
        return float(self.value(z, y, "sum") / self.value(z, y))


@st.composite
def losses(draw: st.DrawFn) -> Loss:
    """Draw a criterion."""
    name = draw(st.sampled_from(("cross_entropy", *MODULES)))
    classes = name == "cross_entropy"
    probabilities = classes and rarely(draw, 8)
    return Loss(
        name,
        width=draw(st.sampled_from((2, 3) if classes else (1, 2))),
        reduction=draw(st.sampled_from(("mean", "sum"))),
        weighted=rarely(draw, 4),
        ignoring=classes and not probabilities and rarely(draw, 3),
        smoothing=0.1 if classes and rarely(draw, 6) else 0.0,
        probabilities=probabilities,
        function=rarely(draw, 10),
        keywords=rarely(draw, 10),
    )
