"""Which functions a forward pass calls with trained parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from host_client.curvature.graph import Place, place_of
from host_client.curvature.mixing import MIXING
from host_client.curvature.rules import RULES, Operation
from host_client.curvature.rules.broadcast import Broadcast
from host_client.curvature.rules.embedding import Embedding
from host_client.curvature.sources import Source, source_of, source_of_view

_inside: Callable[..., Any] | None = getattr(torch._C, "_skip_one_hop_torch_function", None)
"""Runs a function that is written in Python with the functions that it calls seen; older versions of torch lack it."""


SMALL = 6
"""Integers below this are seen as dimensions, not as extents."""


@dataclass
class Use:
    """One call of a function that has a rule.

    Attributes:
        operation: what its rows are made of.
        sources: where its trained arguments lie in the parameters, by role.
        node: of the output, in the autograd graph; still that of this output after a later function has changed the
            values in place.
        output_nr: which of the node's outputs.
        shape: of the output.
        function: its name.
    """

    operation: Operation
    sources: dict[str, Source]
    node: Node
    output_nr: int
    shape: torch.Size
    function: str


@dataclass
class Table:
    """An embedding's output that is spread over the samples, such as that of the positions 0, 1, … s − 1.

    Attributes:
        uses: of the embedding's weight, by the functions that spread it.
        taken: where gradients of the output and of its views arrive, and the nodes of the functions that took them.
    """

    uses: list[Use] = field(default_factory=list)
    taken: list[tuple[Place, Node]] = field(default_factory=list)


@dataclass
class Recording:
    """What one forward pass has done with the trained parameters.

    Attributes:
        uses: calls of functions with a rule, in their order.
        taken: for each argument with a source, its parameter, where its gradients arrive, and the node of the function
            that took it.
        unruled: calls that no rule covers: parameter, name of the function, node.
        path: a hash of the functions called, trained parameters or not, and of the small integers (dimensions, most
            often) that they were given: two passes of one path have gone through the same code.
        tables: what became of the outputs of embeddings that serve all samples, by the number of their use.
        leading: leading extents of what came out of the pass and of what went in, either of which may be the number of
            samples; 0 until the pass is over.
    """

    uses: list[Use] = field(default_factory=list)
    taken: list[tuple[int, Place, Node]] = field(default_factory=list)
    unruled: list[tuple[int, str, Node]] = field(default_factory=list)
    tables: dict[int, Table] = field(default_factory=dict)
    path: int = 0
    leading: tuple[int, int] = (0, 0)


class Recorder(TorchFunctionMode):
    """Sees every torch function that is called while it is entered, and records those that take a trained parameter.

    Args:
        parameters: the trained ones.
        refuse: called with what a function that mixes samples was given, so that it can be named; raises.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], refuse: Callable[[Sequence[Tensor]], NoReturn]) -> None:
        super().__init__()
        self._parameters = {id(p): source_of(i, p) for i, p in enumerate(parameters)}
        self._refuse = refuse
        self._entered = False
        self._start()

    def enter(self) -> None:
        """Begin a new recording."""
        self._start()
        _push_mode(self)
        self._entered = True

    def leave(self) -> Recording | None:
        """End the recording, if there is one; no tensor of the pass is kept but what the uses need."""
        if not self._entered:
            return None
        self._entered = False
        above = []
        while (mode := _pop_mode()) is not self:
            above.append(mode)
        for mode in reversed(above):
            _push_mode(mode)
        recording: Recording = self.recording
        recording.path = hash(tuple(self._path))
        self._start()
        return recording

    def _start(self) -> None:
        self.recording = Recording()
        self._path: list[object] = []
        self._sources: dict[int, Source] = dict(self._parameters)
        # Outputs of embeddings that may serve all samples: which use they are of, and where their gradients arrive.
        self._tables: dict[int, int] = {}
        # So that no other tensor gets the id of a view while that is looked up.
        self._alive: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function, and record it if it has to do with a trained parameter."""
        kwargs = kwargs or {}
        self._path.append(func)
        self._path += [a for a in args if type(a) is int and -SMALL < a < SMALL]
        mixing = MIXING.get(func)
        if mixing is not None and (state := mixing(*args, **kwargs)) is not None:
            self._refuse(state)
        given = self._given(args)
        if kwargs:
            given += self._given(kwargs.values())
        if not given:
            return func(*args, **kwargs)
        rule = RULES.get(func)
        if rule is None and _inside is not None and isinstance(func, FunctionType):
            with self:
                return _inside(func, types, args, kwargs)
        output = func(*args, **kwargs)
        outputs = [output] if isinstance(output, Tensor) else output if isinstance(output, (tuple, list)) else ()
        outputs = [o for o in outputs if isinstance(o, Tensor) and o.grad_fn is not None]
        # A function that had nothing to do, such as ``to``, gives back what it was given.
        if outputs and not any(o is t for o in outputs for t in given):
            operation = rule(outputs[0].shape, *args, **kwargs) if rule is not None else None
            self._record(getattr(func, "__name__", str(func)), operation, given, outputs)
        return output

    def _given(self, args: Iterable[Any]) -> list[Tensor]:
        """The arguments that have a source, or are a table."""
        sources, tables = self._sources, self._tables
        found = []
        for arg in args:
            if id(arg) in sources or id(arg) in tables:
                found.append(arg)
            elif type(arg) in (list, tuple):
                found += self._given(arg)
        return found

    def _record(self, name: str, operation: Operation | None, given: list[Tensor], outputs: list[Tensor]) -> None:
        output = outputs[0]
        node = output.grad_fn
        assert node is not None
        for tensor in given:
            if id(tensor) in self._tables:
                self._record_spread(name, operation, tensor, output, node)
        given = [t for t in given if id(t) in self._sources]
        sources = {id(t): self._sources[id(t)] for t in given}
        roles = {}
        if operation is not None:
            roles = {role: sources[id(t)] for role, t in operation.roles.items() if id(t) in sources}
            # Of what is not trained only detached values are kept: this would keep more alive than the graph does.
            operation.roles = {role: t for role, t in operation.roles.items() if role in roles}
        if not given:
            return
        self.recording.taken += [(sources[id(t)].parameter, place_of(t), node) for t in given]
        if operation is not None:
            if len(roles) == len(given):
                use = Use(operation, roles, node, output.output_nr, output.shape, name)
                self.recording.uses.append(use)
                if isinstance(operation, Embedding):
                    self._tables[id(output)] = len(self.recording.uses) - 1
                    self._alive.append(output)
                return
        elif len(given) == 1:
            views = [source_of_view(sources[id(given[0])], given[0], o) for o in outputs]
            if all(view is not None for view in views):
                self._alive += outputs
                self._sources.update((id(o), view) for o, view in zip(outputs, views, strict=True) if view is not None)
                return
        self.recording.unruled += [(source.parameter, name, node) for source in sources.values()]

    def _record_spread(self, name: str, operation: Operation | None, given: Tensor, output: Tensor, node: Node) -> None:
        """An embedding's output is viewed, or spread over samples, such as that of positions 0, 1, … s − 1."""
        number = self._tables[id(given)]
        table = self.recording.tables.setdefault(number, Table())
        if operation is None and output.numel() == given.numel() and output._is_view() and output.is_contiguous():
            self._tables[id(output)] = number
            self._alive.append(output)
            table.taken.append((place_of(given), node))
        elif isinstance(operation, Broadcast) and output.numel() != given.numel():
            use = self.recording.uses[number]
            assert isinstance(use.operation, Embedding)
            role = next(role for role, t in operation.roles.items() if t is given)
            seen = replace(use.operation, seen=(operation, role))
            table.taken.append((place_of(given), node))
            table.uses.append(Use(seen, use.sources, node, output.output_nr, output.shape, name))
