"""The drawing of the packages in docs/architecture.md, from their imports."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import grimp

PAGE = "architecture.md"

WHOLE = ("spu_lab", "spu_server", "spu_link", "tngd")
"""Packages drawn as one box each; of ``host_client`` each part is one."""


def drawing() -> str:
    """Return the imports between packages as a Mermaid graph, without those that follow from others."""
    boxes = _boxes()
    edges = {(a, b) for a, b in permutations(boxes, 2) if _imports(a, b)}
    reach = {a: _reached(a, edges) for a in boxes}
    direct = sorted((a, b) for a, b in edges if not any(b in reach[c] for x, c in edges if x == a and c != b))
    inside = [box for box in boxes if "." in box]
    lines = ["```mermaid", "graph TD", "  subgraph host_client"]
    lines += [f"    {_name(box)}[{_name(box)}]" for box in inside]
    lines += ["  end", *(f"  {_name(a)} --> {_name(b)}" for a, b in direct), "```"]
    return "\n".join(lines) + "\n"


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("host_client", *WHOLE, exclude_type_checking_imports=True, cache_dir=None)


def _boxes() -> list[str]:
    return [*WHOLE, *sorted(_graph().find_children("host_client"))]


def _imports(importer: str, imported: str) -> bool:
    """Return whether one package imports another directly; ``inproc:`` runs the daemon's device, by design."""
    graph = _graph()
    return any(
        target == imported or target.startswith(f"{imported}.")
        for module in (importer, *graph.find_descendants(importer))
        if module != "host_client.links.inproc" or imported != "spu_server"
        for target in graph.find_modules_directly_imported_by(module)
    )


def _reached(start: str, edges: set[tuple[str, str]]) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        at = todo.pop()
        new = {b for a, b in edges if a == at} - found
        found |= new
        todo += new
    return found


def _name(box: str) -> str:
    return box.rpartition(".")[2]


TABLES = {"drawing": drawing}
