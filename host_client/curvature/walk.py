"""Cotangents on their way down a graph, packed and unpacked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from host_client.curvature.graph import Call, Graph, Place, fit
from host_client.curvature.plan import CapturePlan, Spill
from host_client.curvature.rules import RULES, UNKNOWN, Rule

CHUNK_BYTES = 1 << 28
"""Max bytes (256 MiB) of unpacked cotangents and rows in one pass."""

MISTAKEN = frozenset({"CdistBackward0", "CudnnRnnBackward0"})
"""Functions of which torch's vmap computes wrong derivatives (seen with 2.13): they are called column by column.

cuDNN's derivative of a recurrent layer overwrites what the layer has reserved. Called by itself, the node hands it a
copy; under vmap it hands one copy to the calls for all columns.
"""

Kept: TypeAlias = dict[Call, list[Tensor | None]]
"""Packed cotangents of the outputs of calls, each of shape (k, *output)."""

Arrived: TypeAlias = dict[Call, list[Tensor | None]]


def carry(plan: CapturePlan, columns: Sequence[Tensor]) -> Kept:
    """Bring packed cotangents down, and return those at the calls that need them.

    Gradients with respect to parameters are not computed, and the graph stays as it is.

    Args:
        plan: the way.
        columns: cotangents of the roots, each of shape (k, *root).
    """
    keeping = [step for step in plan.steps if step.kept]

    def down(*cotangents: Tensor) -> tuple[Tensor, ...]:
        there: Arrived = {}
        for place, cotangent in zip(plan.graph.roots, cotangents, strict=True):
            if place is not None:
                _add(there, place, cotangent)
        kept: list[Tensor] = []
        for step in plan.steps:
            arrived = there.pop(step.call, None)
            if step.kept:
                kept += _filled(step.call, arrived, step.axes, cotangents[0])
            if arrived is not None and any(step.wanted):
                found = step.rule.carry(step.call, arrived, step.wanted)
                for place, wanted, value in zip(step.call.edges, step.wanted, found, strict=True):
                    if wanted and place is not None and value is not None:
                        _add(there, place, value)
        return tuple(kept)

    found = iter(many(down, columns, batched=_can_be_batched(plan)))
    return {step.call: [None if axis is None else next(found) for axis in step.axes] for step in keeping}


def _filled(call: Call, arrived: list[Tensor | None] | None, used: Sequence[object], example: Tensor) -> list[Tensor]:
    """Return the cotangents of the outputs that were used, with zeros where none has arrived."""
    values = arrived or [None] * len(call.outputs)
    return [
        torch.zeros(shape, dtype=dtype, device=example.device) if value is None else value
        for value, one, shape, dtype in zip(values, used, call.outputs, call.dtypes, strict=True)
        if one is not None
    ]


class Unpacked:
    """Rows of the parameters that unpacked cotangents reach.

    Args:
        plan: the way.
        sizes: elements of each parameter.
        dtype: in which rows are computed from operations.
    """

    def __init__(self, plan: CapturePlan, sizes: Sequence[int], dtype: torch.dtype) -> None:
        self._plan, self._dtype = plan, dtype
        self._parameters = sorted(plan.unpacked)
        self._forms = [spill for spill in plan.spills if spill.operation is not None]
        self._calls: dict[Call, list[Spill]] = {}
        for spill in plan.spills:
            if spill.operation is None:
                self._calls.setdefault(spill.call, []).append(spill)
        calls = [*self._calls, *(call for call, _ in plan.below)]
        widest = max((shape.numel() for call in calls for shape in call.outputs), default=1)
        each = 8 * max(widest, sum(sizes[index] for index in self._parameters), 1)
        self._chunk = max(1, CHUNK_BYTES // each)

    def rows(self, kept: Kept) -> dict[int, Tensor]:
        """Return the rows of each parameter for k packed columns, shape (k, b, elements).

        Args:
            kept: of the calls that the plan has kept.
        """
        b = self._plan.samples
        columns = len(next(value for values in kept.values() for value in values if value is not None))
        parts: list[dict[int, Tensor]] = []
        for start in range(0, columns, max(1, self._chunk // b)):
            some = slice(start, start + max(1, self._chunk // b))
            forms = [self._form(spill, _used(kept[spill.call])[0][some]) for spill in self._forms]
            number = torch.arange(len(range(*some.indices(columns))) * b)
            parts += [self._part(kept, forms, start, chunk) for chunk in number.split(self._chunk)]
        return {
            index: torch.cat([part[index] for part in parts]).unflatten(0, (columns, b)) for index in self._parameters
        }

    def _form(self, spill: Spill, cotangents: Tensor) -> Tensor:
        """Rows of an argument by its form, shape (k·b, *argument)."""
        assert spill.operation is not None
        axis = next(axis for axis in spill.axes if axis is not None)
        rows = spill.operation.rows(spill.operation.roles[spill.edge], axis, self._dtype)(cotangents.to(self._dtype))
        b, (call, number) = self._plan.samples, spill.call.behind(spill.edge)
        if axis.count != b:
            whole = rows.new_zeros(len(rows), b, rows.shape[2])
            whole[:, axis.start : axis.start + axis.count] = rows
            rows = whole
        return rows.reshape(-1, *call.outputs[number]).to(call.dtypes[number])

    def _part(self, kept: Kept, forms: Sequence[Tensor], first: int, chunk: Tensor) -> dict[int, Tensor]:
        """Rows (n, elements) of some unpacked cotangents, numbered from the column `first` on."""
        b = self._plan.samples
        seeds: list[Tensor] = [form[chunk.to(form.device)] for form in forms]
        for call, spills in self._calls.items():
            for axis, value in zip(spills[0].axes, kept[call], strict=True):
                if axis is not None and value is not None:
                    place = chunk.to(value.device)
                    seeds.append(axis.unpack(value, first + place // b, place % b))

        def down(*given: Tensor) -> tuple[Tensor, ...]:
            values, there = iter(given), dict[Call, list[Tensor | None]]()
            for spill in self._forms:
                _add(there, spill.call.behind(spill.edge), next(values))
            for call, spills in self._calls.items():
                cotangents = [None if axis is None else next(values) for axis in spills[0].axes]
                found = RULES.get(call.name, UNKNOWN).differentiate(call, cotangents)
                for spill in spills:
                    value = found[spill.edge]
                    if value is not None:
                        _add(there, call.behind(spill.edge), value)
            return _parameters(self._plan.below, there, self._plan.graph, self._parameters, given[0])

        return dict(
            zip(
                self._parameters,
                (rows.reshape(len(rows), -1) for rows in many(down, seeds, batched=_can_be_batched(self._plan))),
                strict=True,
            )
        )


def gradients(graph: Graph, cotangents: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return the gradients of the parameters for one cotangent of each root, by the functions' own derivatives alone.

    Args:
        graph: the graph.
        cotangents: of the roots, in their shapes.

    Returns:
        By the index of the parameter, in its shape.
    """
    there: Arrived = {}
    for place, cotangent in zip(graph.roots, cotangents, strict=True):
        if place is not None:
            _add(there, place, cotangent)
    calls = [(call, RULES.get(call.name, UNKNOWN)) for call in graph.calls if call.parameter is None]
    indices = sorted(graph.used)
    return dict(zip(indices, _parameters(calls, there, graph, indices, cotangents[0]), strict=True))


def _parameters(
    calls: Iterable[tuple[Call, Rule]], there: Arrived, graph: Graph, indices: Sequence[int], example: Tensor
) -> tuple[Tensor, ...]:
    """Bring what has arrived down to the parameters, and return what arrives at those of `indices`."""
    for call, rule in calls:
        arrived = there.pop(call, None)
        if arrived is not None:
            for place, value in zip(call.edges, rule.differentiate(call, arrived), strict=True):
                if place is not None and value is not None:
                    _add(there, place, value)
    leaves = {call.parameter: call for call in graph.calls if call.parameter is not None}
    found = []
    for index in indices:
        leaf = leaves[index]
        value = there.get(leaf, [None])[0]
        if value is None:
            value = torch.zeros(leaf.outputs[0], dtype=leaf.dtypes[0], device=example.device)
        found.append(fit(value, leaf.outputs[0], leaf.dtypes[0]))
    return tuple(found)


def _can_be_batched(plan: CapturePlan) -> bool:
    return not any(call.name in MISTAKEN for call in plan.graph.calls)


def many(
    function: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor], *, batched: bool
) -> tuple[Tensor, ...]:
    """Call a function for each of k entries of its arguments, at once where that can be; (k, …) to (k, …)."""
    if batched and len(tensors[0]) > 1:
        with warnings.catch_warnings():
            # Where an operation has no batching rule, torch goes through the columns one by one, as it would without.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            try:
                # A checkpoint that runs its part again draws the random numbers of the forward pass, and under vmap
                # other ones: that is an error here, and done below, as what vmap cannot follow is.
                return torch.func.vmap(function, randomness="error")(*tensors)
            except RuntimeError:
                pass
    found = [function(*entries) for entries in zip(*tensors, strict=True)]
    if len(found) == 1:
        return tuple(part[None] for part in found[0])
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _add(there: Arrived, place: Place, value: Tensor) -> None:
    call, number = place
    arrived = there.setdefault(call, [None] * len(call.outputs))
    before = arrived[number]
    arrived[number] = value if before is None else before + value


def _used(values: Sequence[Tensor | None]) -> list[Tensor]:
    return [value for value in values if value is not None]
