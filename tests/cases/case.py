"""Definition of a case: a small network, its loss, and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.cases.targets import labels


@dataclass(frozen=True)
class Case:
    """A small problem.

    Attributes:
        name: what is special about it.
        build: makes the network.
        sample: shape of one input.
        batch: b.
        reduction: of the criterion.
        frozen: paths of parameters that are not trained.
        vocabulary: inputs are tokens below this; None for real numbers.
        call: what the criterion is given, from the network and its inputs; by default the network's output.
        criterion: makes the loss; its tensors are made in the case's dtype.
        targets: draws them for given outputs.
        unlike: oracles that do not cover the case: "curvlinops", where torch lacks forward derivatives, has wrong ones
            (padded embeddings), or where each pass is another.
        fallback: whether some parameter's rows cost a backward pass for each column and sample, which is announced.
        tolerance: relative error of the curvature in float64; more where the network itself computes in float32.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: Sequence[int]
    batch: int = 4
    reduction: str = "mean"
    frozen: Sequence[str] = ()
    vocabulary: int | None = None
    call: Callable[[nn.Module, Tensor], Tensor] | None = None
    criterion: Callable[..., nn.Module] = nn.CrossEntropyLoss
    targets: Callable[[Tensor], Tensor] = labels
    unlike: Sequence[str] = ()
    fallback: bool = False
    tolerance: float = 1e-10

    def problem(self, dtype: torch.dtype = torch.float64, batch: int | None = None) -> Problem:
        """The case with values, the same each time, for so many samples."""
        b = self.batch if batch is None else batch
        # The state of the global generator is the test's own business.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().to(dtype)
            for path in self.frozen:
                model.get_parameter(path).requires_grad_(False)
            if self.vocabulary is None:
                inputs = torch.randn(b, *self.sample, dtype=dtype)
            else:
                inputs = torch.randint(self.vocabulary, (b, *self.sample))
            criterion = self.criterion(reduction=self.reduction).to(dtype)
            problem = Problem(model, criterion, inputs, torch.empty(0), self.call)
            with torch.no_grad():
                targets = self.targets(problem.outputs())
        return Problem(model, criterion, inputs, targets, self.call)


@dataclass(frozen=True)
class Problem:
    """A network in training mode, its loss, and a batch."""

    model: nn.Module
    criterion: nn.Module
    inputs: Tensor
    targets: Tensor
    call: Callable[[nn.Module, Tensor], Tensor] | None = None

    def outputs(self) -> Tensor:
        """Return the criterion's arguments, by a forward pass."""
        outputs: Tensor = self.model(self.inputs) if self.call is None else self.call(self.model, self.inputs)
        return outputs

    def loss(self) -> Tensor:
        """The loss, by a forward pass."""
        loss: Tensor = self.criterion(self.outputs(), self.targets)
        return loss

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained parameters, each once."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def sizes(self) -> list[int]:
        """Numbers of entries of the trained parameters."""
        return [p.numel() for p in self.trained]

    def part(self, samples: slice) -> Problem:
        """The same network and loss on some of the samples."""
        rows = len(self.targets) // len(self.inputs)  # several a sample where a sequence is flattened into the batch
        targets = self.targets.unflatten(0, (-1, rows))[samples].flatten(0, 1)
        return Problem(self.model, self.criterion, self.inputs[samples], targets, self.call)
