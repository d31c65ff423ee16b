"""Forward passes that have been recorded and may yet have a loss."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from host_client.curvature.errors import UnsupportedLayer
from host_client.curvature.graph import Graph
from host_client.curvature.recorder import Recording


class Pass:
    """A recorded forward pass, and whether anyone can still compute a loss from it.

    Args:
        recording: what was recorded.
        outputs: tensors that came out of it.
        gone: a method that is called when one of them is gone, if its owner still lives.

    Attributes:
        recording: the same.
        used: whether it has had its loss.
    """

    def __init__(self, recording: Recording, outputs: Sequence[Tensor], gone: Callable[[], None]) -> None:
        self.recording = recording
        self.used = False
        told = weakref.WeakMethod(gone)

        def tell(_: object) -> None:
            method = told()
            if method is not None:
                method()

        self._outputs = [weakref.ref(t, tell) for t in outputs]
        self._nodes = [t.grad_fn for t in outputs]

    def alive(self) -> bool:
        """Whether an output still exists."""
        return any(t() is not None for t in self._outputs)

    def within(self, graph: Graph) -> bool:
        """Whether the graph goes through this pass."""
        recording = self.recording
        nodes = itertools.chain(
            (use.node for use in recording.uses),
            (node for _, _, node in recording.unruled),
            self._nodes,  # all there is to see where parameters went into functions that torch does not dispatch
        )
        return any(node in graph.nodes for node in nodes)


def sample_counts(z: Tensor, recordings: Sequence[Recording]) -> list[int]:
    """What may be the number of samples in a criterion's input of so many passes, the likeliest first.

    That is the leading extent of the models' outputs, or that of their inputs where the outputs have several rows for
    each row of input.

    Raises:
        UnsupportedLayer: where passes differ in it, or the criterion's input cannot be divided among them.
    """
    found = {recording.leading[0] for recording in recordings}
    if len(found) > 1:
        raise UnsupportedLayer("", f"was called with {sorted(found)} samples for one loss; give each call equally many")
    samples = found.pop()
    if samples == 0 or z.dim() == 0 or len(z) % samples:
        raise UnsupportedLayer(
            "",
            f"gave out {samples} samples, and the criterion was given an input of shape {tuple(z.shape)}; its "
            "first dimension must hold all samples, or all their positions, sample by sample",
        )
    inputs = {recording.leading[-1] for recording in recordings}
    fewer = inputs.pop()
    return [samples, fewer] if not inputs and 0 < fewer < samples and samples % fewer == 0 else [samples]


def tensors(values: object) -> Iterator[Tensor]:
    """The tensors in nested sequences, mappings and data classes, in their order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors(tuple(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors(value)
    elif dataclasses.is_dataclass(values):
        yield from tensors(tuple(vars(values).values()))
