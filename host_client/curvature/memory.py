"""Count the memory that a curvature takes before any of it is reserved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from host_client.capacity import Capacity, Cell
from host_client.curvature.available import available_memory, available_on
from host_client.curvature.errors import CurvatureTooLarge
from host_client.curvature.estimate import Estimate

NOT_WORTH_ASKING = 1 << 26
"""Bytes (64 MiB) up to which the free memory is not queried: the query would take a part of so small a step."""

FRACTION = 0.9
"""Fraction of the free memory that a curvature may take; the rest is left to the program and the machine."""

WANTED: Mapping[Cell, str] = {
    "parameter": "parameters",
    "row": "rows of the factor",
    "block parameter": "parameters of the largest block",
}
"""Name of what the cells of a device stand for."""

EMBEDDINGS: Mapping[Cell, str] = {"parameter": "direct", "row": "sample", "block parameter": "block"}
"""Embeddings by what a cell is, where that can be counted before the curvature is there."""


@dataclass(frozen=True)
class Size:
    """The size of the rows of one block, in elements.

    Attributes:
        path: dotted path of the layer or parameter.
        fixed: elements that do not depend on the number of columns, such as a layer's inputs.
        per_column: further elements for each column of cotangents.
        itemsize: bytes an element.
        parameters: number of parameters that the block is for; zero if another block of the same path counts them.
    """

    path: str
    fixed: int
    per_column: int
    itemsize: int
    parameters: int = 0

    def nbytes(self, columns: int) -> int:
        """Bytes with c = `columns`."""
        return (self.fixed + columns * self.per_column) * self.itemsize


@dataclass(frozen=True)
class Demand:
    """A curvature that is to be computed.

    Attributes:
        sizes: its blocks.
        columns: c.
        samples: b.
        parameters: N.
        outputs: elements of the criterion's input.
        place: where the model is.
        device_here: whether the device is emulated on this machine, so that its memory is the host's.
        link_itemsize: bytes of an element on the link; None for those of the operands.
        cell: what a cell of the device stands for.
    """

    sizes: tuple[Size, ...]
    columns: int
    samples: int
    parameters: int
    outputs: int
    place: torch.device
    device_here: bool
    link_itemsize: int | None
    cell: Cell = "parameter"

    @property
    def cells(self) -> int:
        """Cells that the device must have."""
        if self.cell == "row":
            return self.columns * self.samples
        return max(size.parameters for size in self.sizes) if self.cell == "block parameter" else self.parameters

    def on_host(self) -> int:
        """Bytes that the host's memory must have for it."""
        needed = self.estimate()
        return needed.host + (needed.device if self.device_here else 0)

    def estimate(self) -> Estimate:
        """Its bytes, counted."""
        operands = sum(size.nbytes(self.columns) for size in self.sizes)
        sent = sum(s.nbytes(self.columns) // s.itemsize * (self.link_itemsize or s.itemsize) for s in self.sizes)
        itemsize = max((size.itemsize for size in self.sizes), default=0)
        vector = self.parameters * itemsize
        rows = self.columns * self.samples
        cotangents = self.columns * self.outputs * itemsize
        computed = operands + cotangents + vector
        on_cpu = self.place.type == "cpu"
        host = (computed if on_cpu else operands + vector) + vector
        # When the operands are laid together for their way to the host, the cotangents are gone.
        accelerator = 0 if on_cpu else operands + max(cotangents, sent) + vector
        if self.cell == "row":  # the Gram matrix, made here from the operands in float64
            gram = 8 * rows * rows
            in_float64 = operands // max(itemsize, 1) * 8
            return Estimate(host + in_float64 + gram, accelerator, gram + 16 * rows, 4 * gram + 80 * rows)
        if self.cell == "block parameter":
            sent = max(s.nbytes(self.columns) // s.itemsize * (self.link_itemsize or s.itemsize) for s in self.sizes)
            operands = max(size.nbytes(self.columns) for size in self.sizes)
            vector = self.cells * itemsize
        small = min(rows, self.cells)
        return Estimate(host, accelerator, sent + vector, operands + 8 * (3 * small * small + 10 * self.cells))

    def with_samples(self, samples: int) -> Demand:
        """The same from a smaller batch."""

        def scaled(elements: int) -> int:
            return -(-elements * samples // self.samples)

        sizes = tuple(replace(s, fixed=scaled(s.fixed), per_column=scaled(s.per_column)) for s in self.sizes)
        return replace(self, sizes=sizes, samples=samples, outputs=scaled(self.outputs))

    def with_columns(self, columns: int) -> Demand:
        """The same from fewer columns."""
        return replace(self, columns=columns)

    def without(self, path: str) -> Demand:
        """The same with one layer frozen."""
        frozen = sum(size.parameters for size in self.sizes if size.path == path)
        sizes = tuple(size for size in self.sizes if size.path != path)
        return replace(self, sizes=sizes, parameters=self.parameters - frozen)

    def largest(self) -> list[tuple[str, int]]:
        """Paths and the bytes of their operands, largest first."""
        totals: dict[str, int] = {}
        for size in self.sizes:
            totals[size.path] = totals.get(size.path, 0) + size.nbytes(self.columns)
        return sorted(totals.items(), key=lambda item: -item[1])


@dataclass(frozen=True)
class MemoryLimits:
    """Limits of bytes and of the device; None where no limit is known, or none can matter."""

    host: int | None
    accelerator: int | None
    device: Capacity | None

    def exceeded(self, demand: Demand) -> list[str]:
        """Return the limits that `demand` exceeds, in words; an empty list if it fits."""
        needed = demand.estimate()
        found = []
        if self.host is not None and demand.on_host() > self.host:
            both = ", for itself and for the device emulated here" if demand.device_here else ""
            found.append(f"the host has {readable(self.host)} to spare{both}")
        if self.accelerator is not None and needed.accelerator > self.accelerator:
            found.append(f"the accelerator has {readable(self.accelerator)} to spare")
        if self.device is not None and needed.link > self.device.upload_bytes:
            found.append(f"the device takes uploads of at most {readable(self.device.upload_bytes)}")
        if self.device is not None and demand.cells > self.device.cells:
            found.append(f"the device has {self.device.cells:,} cells for {demand.cells:,} {WANTED[demand.cell]}")
        return found


def check_memory(
    sizes: Sequence[Size],
    columns: int,
    *,
    samples: int,
    parameters: int,
    device: Capacity | None = None,
    outputs: int = 0,
    place: torch.device | None = None,
    link_itemsize: int | None = None,
) -> Estimate:
    """Count what a curvature takes, and refuse it where there is not as much.

    Args:
        sizes: its blocks; blocks of one path are one layer.
        columns: c, of the cotangents.
        samples: b.
        parameters: N.
        device: what the device can hold; None if there is none.
        outputs: elements of the criterion's input, of which there are c cotangents.
        place: where the model is; the CPU if left out.
        link_itemsize: bytes of an element on the link, where the operands are sent in another precision than their own.

    Returns:
        What it takes.

    Raises:
        CurvatureTooLarge: saying what is needed, what the limits are, which layers are the largest, and which settings
            would fit.
    """
    place = place or torch.device("cpu")
    here = device is not None and device.here
    cell: Cell = "parameter" if device is None else device.cell
    demand = Demand(tuple(sizes), columns, samples, parameters, outputs, place, here, link_itemsize, cell)
    estimate = demand.estimate()
    host = accelerator = None
    if demand.on_host() > NOT_WORTH_ASKING:
        host = int(FRACTION * available_memory())
    if estimate.accelerator > NOT_WORTH_ASKING:
        accelerator = int(FRACTION * available_on(place))
    limits = MemoryLimits(host, accelerator, device)
    exceeded = limits.exceeded(demand)
    if exceeded:
        raise CurvatureTooLarge(_message(demand, exceeded, lambda other: not limits.exceeded(other)), estimate)
    return estimate


def _message(demand: Demand, exceeded: Sequence[str], fits: Callable[[Demand], bool]) -> str:
    needed = demand.estimate()
    accelerator = f", {readable(needed.accelerator)} on the accelerator" if needed.accelerator else ""
    largest = ", ".join(f"{path!r} {readable(nbytes)}" for path, nbytes in demand.largest()[:3])
    ways = remedies(demand, fits)
    return (
        f"the curvature of {demand.parameters:,} parameters from {demand.samples:,} samples with {demand.columns:,} "
        f"columns each takes {readable(needed.host)} on the host{accelerator}, {readable(needed.link)} on the link and "
        f"{readable(needed.device)} on the device, but {', and '.join(exceeded)}. Most is taken by {largest}. "
        + (f"What would fit: {'; or '.join(ways)}." if ways else "Nothing fits but a smaller model.")
    )


def remedies(demand: Demand, fits: Callable[[Demand], bool]) -> list[str]:
    """Settings under which `demand` would fit, in words, each tried out; some together where one is not enough."""
    others = {name: replace(demand, cell=cell) for cell, name in EMBEDDINGS.items() if cell != demand.cell}
    embedded = {name: f'connect(…, embedding="{name}")' for name in others}
    ways = [embedded[name] for name, other in others.items() if fits(other)]
    ways += _smaller(demand, fits)
    if not ways:
        ways = [f"{embedded[name]} and {way}" for name, other in others.items() for way in _smaller(other, fits)]
    frozen = _frozen(demand, fits)
    if frozen:
        ways.append(f"freezing {', '.join(repr(path) for path in frozen)} (requires_grad_(False))")
    return ways


def _smaller(demand: Demand, fits: Callable[[Demand], bool]) -> list[str]:
    """Fewer columns or samples under which `demand` would fit, in words; both together where one is not enough."""
    ways = []
    columns = _largest(demand.columns - 1, lambda c: fits(demand.with_columns(c)))
    if columns:
        ways.append(f'curvature="mc" with samples={columns}' + (" or fewer" if columns > 1 else ""))
    batch = _largest(demand.samples - 1, lambda b: fits(demand.with_samples(b)))
    if batch:
        ways.append(f"batches of {batch:,} or fewer")
    if not ways:
        single = demand.with_columns(1)
        batch = _largest(demand.samples - 1, lambda b: fits(single.with_samples(b)))
        if batch:
            ways.append(f'curvature="mc" with samples=1 and batches of {batch:,} or fewer')
    return ways


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `limit` that fits, given that all below one that fits do; 0 if none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _frozen(demand: Demand, fits: Callable[[Demand], bool]) -> list[str]:
    """The layers to freeze, largest first, until what is left fits; none if nothing would be left."""
    paths: list[str] = []
    for path, _ in demand.largest()[:-1]:
        paths.append(path)
        demand = demand.without(path)
        if fits(demand):
            return paths
    return []


def readable(nbytes: int) -> str:
    """A number of bytes with a unit, to three digits."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 999.5 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.3g} {unit}"
