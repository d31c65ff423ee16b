"""The picture of a Mermaid graph as SVG, so that the site draws it without a script from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise, product
from statistics import fmean

WIDTH, HEIGHT, ROW, GAP = 112, 28, 56, 14
"""Size of a box, distance of rows, and distance of neighbours in a row, in pixels."""

SWEEPS = 8
"""How often the rows are ordered, upwards and downwards in turn."""

HEAD = (
    '<marker id="head" orient="auto" markerWidth="8" markerHeight="6" refX="8" refY="3">'
    '<path d="M0 0L8 3L0 6Z" fill="currentColor"/></marker>'
)

Node = tuple[str, str, int]
"""A box, twice its name and 0; or the place of an arrow from box to box in a row between them."""


def svg(graph: str) -> str:
    """Return the picture of a graph of arrows ``a --> b``, with a frame around its subgraph of boxes ``a[a]``.

    A box is in a row above those that its arrows lead to, and the frame above those that its boxes lead to. A box that
    is neither above nor below it stands at its right.
    """
    arrows = re.findall(r"^ *(\w+) --> (\w+)$", graph, re.MULTILINE)
    title, inside = re.findall(r"subgraph (\w+)", graph)[0], re.findall(r"(\w+)\[", graph)
    above = {a for a, b in arrows if b in inside and a not in inside}
    below = {b for a, b in arrows if a in inside and b not in inside}
    ordered = {*arrows, *product(above, inside), *product(inside, below)}
    row = {box: _depth(box, ordered) for arrow in arrows for box in arrow}
    low, high, top = min(row[box] for box in inside), max(row[box] for box in inside), max(row.values())
    right = {box for box in row if low <= row[box] <= high} - {*inside}
    row |= dict.fromkeys(right, high)
    paths = [
        [(a, a, 0), *((a, b, between) for between in range(row[a] - 1, row[b], -1)), (b, b, 0)]
        for a, b in arrows
        if not right & {a, b}
    ]
    level = {node: node[2] or row[node[0]] for path in paths for node in path}
    places = _places(level, paths)
    x = {box: place for (box, other, _), place in places.items() if box == other}
    left = min(x[box] for box in inside) - WIDTH / 2 - GAP
    width = max(x[box] for box in inside) + WIDTH / 2 + GAP - left
    x |= dict.fromkeys(right, left + width + GAP + WIDTH / 2)
    y = [(top - number) * ROW + HEIGHT for number in range(top + 1)]
    ways = [_curve([(places[node], y[level[node]]) for node in path]) for path in paths]
    for a, b in arrows:
        if a in right:  # down, then to the left
            ways.append(f"M{x[a]} {y[row[a]] + HEIGHT / 2}V{y[row[b]]}H{x[b] + WIDTH / 2}")
        if b in right:  # to the right, then down
            ways.append(f"M{x[a] + WIDTH / 2} {y[row[a]]}H{x[b]}V{y[row[b]] - HEIGHT / 2}")
    shapes = [_rectangle(x[box] - WIDTH / 2, y[row[box]] - HEIGHT / 2, WIDTH, HEIGHT) for box in row]
    shapes.append(_rectangle(left, y[high] - HEIGHT / 2 - GAP, width, (high - low) * ROW + HEIGHT + 2 * GAP))
    shapes += [f'<path d="{way}" marker-end="url(#head)"/>' for way in ways]
    texts = [_text(box, x[box], y[row[box]]) for box in row] + [_text(title, left + WIDTH / 2, y[high])]
    size = f"{left - 1} 0 {width + WIDTH + 2 * GAP} {y[0] + HEIGHT}"
    return (
        f'<svg viewBox="{size}" role="img" stroke="currentColor" fill="none">{HEAD}{"".join(shapes)}'
        f'<g fill="currentColor" stroke="none" text-anchor="middle" font-size="13">'
        f"{''.join(texts)}</g></svg>"
    )


def _depth(box: str, arrows: Collection[tuple[str, str]]) -> int:
    return 1 + max((_depth(b, arrows) for a, b in arrows if a == box), default=-1)


def _places(level: Mapping[Node, int], paths: Sequence[Sequence[Node]]) -> dict[Node, float]:
    """Return where the nodes are in their rows, near those that they are joined with."""
    rows = [[node for node in level if level[node] == number] for number in range(max(level.values()) + 1)]
    pairs = [pair for path in paths for pair in pairwise(path)]
    joined = {node: [other for pair in pairs if node in pair for other in pair] for node in level}
    x: dict[Node, float] = {}
    for sweep in range(SWEEPS):
        for nodes in rows[:: -1 if sweep % 2 else 1]:
            nodes.sort(key=lambda node: fmean(x.get(other, 0.0) for other in joined[node]))
            widths = [GAP + (GAP if node[2] else WIDTH) for node in nodes]
            for place, node in enumerate(nodes):
                x[node] = sum(widths[:place]) + widths[place] / 2 - sum(widths) / 2
    return x


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Return a way from the lower side of a box to the upper side of another, vertical in the rows between."""
    way = f"M{points[0][0]} {points[0][1] + HEIGHT / 2}"
    for (x, y), (next_x, next_y) in pairwise(points):
        middle = (y + next_y) / 2
        way += f"V{y + HEIGHT / 2}C{x} {middle} {next_x} {middle} {next_x} {next_y - HEIGHT / 2}"
    return way


def _rectangle(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'


def _text(text: str, x: float, y: float) -> str:
    return f'<text x="{x}" y="{y + 4}">{text}</text>'
