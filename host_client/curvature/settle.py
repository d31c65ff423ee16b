"""Which recorded uses count for a loss, and which parameters need the way that serves for anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from host_client.curvature.graph import Graph, Place
from host_client.curvature.recorder import Recording, Table, Use


def settle(
    recordings: Sequence[Recording], graph: Graph, parameters: Sequence[nn.Parameter]
) -> tuple[list[Use], dict[int, str]]:
    """The uses that a backward pass through the graph reaches.

    That the recorded uses of a parameter are all there are is counted in the graph: a function that torch does not
    dispatch (of a compiled or scripted module, or an autograd function of one's own) takes a gradient more.

    Returns:
        The uses, and for the parameters that some function without a rule takes, the name of one such function.
    """
    uses: list[Use] = []
    unruled: dict[int, str] = {}
    counted: Counter[Place] = Counter()
    owner: dict[Place, int] = {id(parameter): i for i, parameter in enumerate(parameters)}
    for recording in recordings:
        for index, place, node in recording.taken:
            owner[place] = index
            counted[place] += node in graph.nodes
        for index, function, node in recording.unruled:
            if node in graph.nodes:
                unruled.setdefault(index, function)
        for number, use in enumerate(recording.uses):
            if use.node not in graph.nodes:
                continue
            table = recording.tables.get(number)
            spread = [] if table is None else [one for one in table.uses if one.node in graph.nodes]
            if table is None or not spread:
                uses.append(use)
            elif _is_all(table, graph):
                uses += spread
            else:
                unruled.setdefault(use.sources["weight"].parameter, use.function)
    for place, index in owner.items():
        if graph.arrivals[place] > counted[place]:
            unruled.setdefault(index, "a function that torch does not dispatch")
    return uses, unruled


def _is_all(table: Table, graph: Graph) -> bool:
    counted = Counter(place for place, node in table.taken if node in graph.nodes)
    return all(graph.arrivals[place] <= n for place, n in counted.items())
