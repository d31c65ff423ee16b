"""A task: data, a network and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs (b, …) and targets (b, …)."""


@dataclass(frozen=True)
class Examples:
    """Inputs of shape (n, …) and targets of shape (n, …)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Number of examples n."""
        return len(self.targets)

    def __getitem__(self, index: slice | Tensor) -> Examples:
        """The examples at these places."""
        return Examples(self.inputs[index], self.targets[index])


@dataclass(frozen=True)
class Task:
    """A training task.

    Attributes:
        name: as on the command line.
        outputs: d_z, number of the network's outputs per example.
        network: makes a fresh network from torch's global random numbers.
        criterion: loss of (outputs, targets), a mean over the batch.
        prepare: turns stored inputs into what the network takes.
        train: what to learn from.
        validation: what to choose settings by.
        test: what to report, and nothing else.
        score: further figures of a network in evaluation mode on the test set, by name.
    """

    name: str
    outputs: int
    network: Callable[[], nn.Module]
    criterion: nn.Module
    prepare: Callable[[Tensor], Tensor] = field(repr=False)
    train: Examples = field(repr=False)
    validation: Examples = field(repr=False)
    test: Examples = field(repr=False)
    score: Callable[[nn.Module], Mapping[str, float]] = field(default=lambda model: {}, repr=False)

    def build(self, seed: int) -> nn.Module:
        """A fresh network; the same seed gives the same one, and leaves torch's global random numbers alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network()

    def batches(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Batches without end, reshuffled each epoch; the same seed gives the same ones.

        An epoch is ``batches_per_epoch`` batches; the last one holds what is left over.
        """
        generator = torch.Generator().manual_seed(seed)
        while True:
            for places in torch.randperm(len(self.train), generator=generator).split(batch_size):
                batch = self.train[places]
                yield self.prepare(batch.inputs), batch.targets

    def batches_per_epoch(self, batch_size: int) -> int:
        """Number of batches that hold every training example once."""
        return -(-len(self.train) // batch_size)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Examples, chunk: int = 2_000) -> tuple[float, float]:
        """Return the mean loss, and the fraction of targets at which the largest output is."""
        was_training = model.training
        model.eval()
        loss = correct = 0.0
        for start in range(0, len(examples), chunk):
            part = examples[start : start + chunk]
            outputs = model(self.prepare(part.inputs))
            loss += float(self.criterion(outputs, part.targets)) * len(part)
            correct += float((outputs.argmax(1) == part.targets).sum())
        model.train(was_training)
        return loss / len(examples), correct / examples.targets.numel()

    @torch.no_grad()
    def test_scores(self, model: nn.Module) -> dict[str, float]:
        """Return `score` of a network, which keeps its mode."""
        was_training = model.training
        model.eval()
        scores = dict(self.score(model))
        model.train(was_training)
        return scores
