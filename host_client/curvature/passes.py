"""Forward passes that have been recorded and may yet have a loss."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

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
