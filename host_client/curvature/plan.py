"""The plan of a pass: where cotangents of a criterion's input go down packed, and where unpacked, to the parameters.

*Packed* cotangents hold one column for all samples of a batch at once: what belongs to sample i is its own. That is
right as long as no function mixes samples, which is followed from function to function by their `Rule`. Where samples
do not lie apart, or where nothing is known, cotangents are *unpacked* into one for each column and sample, and come
down by the functions' own derivatives: right for anything, at a higher cost. Nothing is remembered from pass to pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from host_client.curvature.axis import WHOLE, Axis
from host_client.curvature.graph import Call, Graph, Place
from host_client.curvature.rules import RULES, UNKNOWN, Operation, Rule
from host_client.curvature.rules.affine import Broadcast
from host_client.curvature.rules.base import Axes
from host_client.curvature.rules.embedding import TableLookup
from host_client.curvature.rules.products import Product
from host_client.curvature.sources import Source, source_of


@dataclass(frozen=True)
class Claim:
    """One use of one parameter, by a function whose rows have a form.

    Attributes:
        call: of the function.
        edge: number of the argument that is the parameter, or a view of it.
        axis: where the samples lie in the function's output.
        operation: what the rows are made of.
        role: of the parameter in it.
        source: which part of the parameter the argument is.
    """

    call: Call
    edge: int
    axis: Axis
    operation: Operation
    role: str
    source: Source

    def whole(self, size: int) -> bool:
        """Return whether it is all of a parameter of this size, as it lies in memory."""
        return self.source.numel == size and self.source.contiguous


@dataclass(frozen=True)
class Spill:
    """An argument whose cotangents are unpacked.

    Attributes:
        call: of the function.
        edge: number of the argument.
        axes: where the samples lie in the function's outputs; None for those that nothing has used.
        operation: what the rows of the argument are made of; None where the function's derivative must do.
    """

    call: Call
    edge: int
    axes: tuple[Axis | None, ...]
    operation: Operation | None


@dataclass(slots=True)
class PlanStep:
    """One call that packed cotangents come down through.

    Attributes:
        call: the call.
        rule: what is known of it.
        axes: where the samples lie in its outputs.
        wanted: which of its arguments have packed cotangents.
        kept: whether the cotangents of its outputs are needed for rows.
    """

    call: Call
    rule: Rule
    axes: list[Axis | None]
    wanted: list[bool]
    kept: bool = False


@dataclass
class CapturePlan:
    """The ways of all cotangents.

    Attributes:
        graph: what they come down through.
        samples: b.
        steps: for the packed ones, in order.
        claims: uses of parameters that packed cotangents serve.
        spills: arguments that are unpacked.
        below: the calls that unpacked cotangents come down through, in order, with their rules.
        unpacked: indices of the parameters that they reach.
    """

    graph: Graph
    samples: int
    steps: list[PlanStep]
    claims: list[Claim] = field(default_factory=list)
    spills: list[Spill] = field(default_factory=list)
    below: list[tuple[Call, Rule]] = field(default_factory=list)
    unpacked: dict[int, str] = field(default_factory=dict)

    @property
    def unpacked_elements(self) -> int:
        """Return the cost of one unpacked cotangent: its elements in all places together."""
        calls = [call for call, _ in self.below] + [spill.call for spill in self.spills if spill.operation is None]
        return sum(shape.numel() for call in calls for shape in call.outputs)

    def approximations(self) -> Iterable[tuple[Call, str]]:
        """The calls whose derivative is approximate, with what is left out."""
        for call, rule in [(step.call, step.rule) for step in self.steps if any(step.wanted)] + self.below:
            left_out = rule.approximation(call)
            if left_out is not None:
                yield call, left_out


def plan(graph: Graph, axes: Sequence[Axis], samples: int) -> CapturePlan:
    """Follow the samples from the roots of a graph down to the parameters.

    Args:
        graph: the graph.
        axes: where the samples lie in each root.
        samples: b.
    """
    there: dict[Call, list[Axis | None]] = {}
    result = CapturePlan(graph, samples, [])
    for place, axis in zip(graph.roots, axes, strict=True):
        if place is not None and not _arrive(there, place, axis):
            raise AssertionError("the same tensor is a root twice")
    for call in graph.calls:
        if call in there and call.parameter is None:
            result.steps.append(_follow(call, there, result))
    _unpack(result)
    return result


def _arrive(there: dict[Call, list[Axis | None]], place: Place, axis: Axis) -> bool:
    """Note where samples lie in an output; false where others have used it that have them elsewhere."""
    call, number = place
    known = there.get(call)
    if known is None:
        there[call] = known = [None] * len(call.outputs)
    if known[number] is None:
        known[number] = axis
        return True
    return known[number] == axis


def _follow(call: Call, there: dict[Call, list[Axis | None]], result: CapturePlan) -> PlanStep:
    """Let packed cotangents come down through one call."""
    rule, axes = RULES.get(call.name, UNKNOWN), there[call]
    step = PlanStep(call, rule, axes, [False] * len(call.edges))
    if call.empty:
        return step  # nothing comes down
    one = axes[0] if len(axes) == 1 else _only(axes)
    alone = one is not None and one.single  # one sample: whatever the function is, all of it is that sample's
    followed = [one] * len(call.edges) if alone else rule.follow(call, axes)
    operation = unasked = object()
    for edge, place in enumerate(call.edges):
        if place is None or place[0].empty:
            continue
        axis = None if followed is None else followed[edge]
        form = claim = None
        if followed is not None and (alone or axis is None):
            if operation is unasked:
                operation = rule.operation(call)
            if isinstance(operation, Operation) and edge in operation.roles:
                form = operation
                claim = None if one is None else _claim(call, edge, one, form)
        if claim is not None:
            result.claims.append(claim)
        elif axis is not None and place[0].parameter is None and _arrive(there, place, _whole(axis)):
            step.wanted[edge] = True
            continue
        else:
            result.spills.append(Spill(call, edge, tuple(axes), form if axis is None else None))
        step.kept = True
    return step


def _only(axes: Axes) -> Axis | None:
    """The axis of all outputs that have one, if it is the same."""
    known = set(axes) - {None}
    return known.pop() if len(known) == 1 else None


def _whole(axis: Axis) -> Axis:
    """The axis as it is written where there is one sample only."""
    return Axis(WHOLE, 1, axis.start, 1) if axis.single else axis


def _claim(call: Call, edge: int, axis: Axis, operation: Operation) -> Claim | None:
    """The use of a parameter, if an argument is one or a view of one."""
    place, role = call.behind(edge), operation.roles[edge]
    source = source_of(place)
    if source is None and isinstance(operation, Broadcast):
        return _table(call, edge, axis, operation)
    if source is None:
        return None
    if isinstance(operation, Product) and role == "weight":
        source = source.squeeze()
        if source.transposed:
            operation = Product(operation.inputs, operation.roles, operation.shape, transposed=False)
            source = source.transpose()
    return Claim(call, edge, axis, operation, role, source)


def _table(call: Call, edge: int, axis: Axis, operation: Broadcast) -> Claim | None:
    """The use of an embedding whose output serves all samples, such as that of the positions 0, 1, … s − 1."""
    behind, _ = call.behind(edge)
    while behind.name in ("ViewBackward0", "UnsqueezeBackward0"):
        behind, _ = behind.behind(0)
    table = RULES[behind.name].operation(behind) if behind.name == "EmbeddingBackward0" else None
    source = source_of(behind.behind(0)) if table is not None else None
    if source is None or not isinstance(table, TableLookup):
        return None
    return Claim(call, edge, axis, table.spread_by(operation, operation.roles[edge]), "weight", source)


def _unpack(result: CapturePlan) -> None:
    """Find what unpacked cotangents reach; a parameter that they reach has all its rows from them."""
    reached: dict[Call, str] = {}
    _reach([(spill.call.behind(spill.edge)[0], spill.call.name) for spill in result.spills], reached)
    while True:
        parameters = {call.parameter for call in reached}
        moved = [claim for claim in result.claims if claim.source.parameter in parameters]
        if not moved:
            break
        result.claims = [claim for claim in result.claims if claim.source.parameter not in parameters]
        for claim in moved:
            operation = RULES[claim.call.name].operation(claim.call)
            axes = (claim.axis, *[None] * (len(claim.call.outputs) - 1))
            result.spills.append(Spill(claim.call, claim.edge, axes, operation))
            _reach([(claim.call.behind(claim.edge)[0], claim.call.name)], reached)
    order = [call for call in result.graph.calls if call in reached]
    result.below = [(call, RULES.get(call.name, UNKNOWN)) for call in order if call.parameter is None]
    result.unpacked = {call.parameter: reached[call] for call in order if call.parameter is not None}


def _reach(todo: list[tuple[Call, str]], reached: dict[Call, str]) -> None:
    """Add calls and all behind them, with the name of the function at which cotangents were unpacked."""
    while todo:
        call, name = todo.pop()
        if call not in reached:
            reached[call] = name
            todo += [(place[0], name) for place in call.edges if place is not None]
