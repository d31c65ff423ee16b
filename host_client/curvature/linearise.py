"""From one call of a loss to the factor of its curvature."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from host_client.capacity import Capacity
from host_client.curvature.axis import Axis
from host_client.curvature.blocks import blocks_of
from host_client.curvature.columns import Columns, ways_to_group
from host_client.curvature.errors import (
    CurvatureApproximation,
    CurvatureFallback,
    CurvatureMismatch,
    UnsupportedCriterion,
    UnsupportedLayer,
)
from host_client.curvature.forms import Batch, BlockForm
from host_client.curvature.graph import Graph
from host_client.curvature.losses import Kind, LossCall
from host_client.curvature.memory import Size, check_memory
from host_client.curvature.plan import CapturePlan, plan
from host_client.curvature.rules import RULES, UNKNOWN
from host_client.curvature.sources import source_of
from host_client.curvature.walk import Unpacked, carry, gradients
from spu_link.operators import LayerRows, Rows
from spu_link.operators.base import BlockFactor
from spu_link.operators.zeros import ZeroRows

Check: TypeAlias = Literal["first", "always", "never"]
"""When a factor is verified: in the first pass and whenever the recorded graph has changed, in each pass, or never."""

PASS_ELEMENTS = 1 << 18
"""Elements (1 MiB in float32) that the largest output may take in one pass of packed cotangents.

Wide layers go column by column, so that a pass stays in the processor's cache; narrow ones all together, so that the
overhead of a call is paid once.
"""

TF32_EPS = 2.0**-10
"""Distance of 1 to the next number in NVIDIA's TF32, in which a GPU convolves float32 numbers by default."""

MAX_GRAPHS = 1 << 12
"""Graphs that are remembered as verified; a model that takes another path each time would fill the memory with them."""


class LossCurvature(NamedTuple):
    """The curvature of one loss.

    Attributes:
        operator: the factor A = SᵀJ of the trained parameters, with rows in the order (column, sample).
        columns: c.
        used: indices of the parameters that the loss uses; the others have zero columns.
    """

    operator: LayerRows
    columns: int
    used: frozenset[int]


class Linearise:
    """Makes factors of one model's losses.

    Args:
        parameters: the trained ones with their dotted paths, in the order of the columns.
        kind, draws, generator: of the curvature, see `LossCall.root`.
        check: when factors are verified.

    Attributes:
        device: what the device can hold that the factors are for; None if there is none.
        link_itemsize: bytes of an element on the way there; None for those of the factors.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        kind: Kind,
        draws: int,
        generator: torch.Generator | None,
        check: Check,
    ) -> None:
        self._kind: Kind = kind
        self._draws, self._generator, self._check = draws, generator, check
        self._paths = [path for path, _ in parameters]
        self._index = {id(parameter): index for index, (_, parameter) in enumerate(parameters)}
        self._parameters = [parameter for _, parameter in parameters]
        self._sizes = [parameter.numel() for _, parameter in parameters]
        self._verified: set[int] = set()
        self._announced: set[str] = set()
        self.device: Capacity | None = None
        self.link_itemsize: int | None = None

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the factor: that of the parameters now, which may have got another one since."""
        double = any(parameter.dtype == torch.float64 for parameter in self._parameters)
        return torch.float64 if double else torch.float32

    def __call__(self, loss: LossCall) -> LossCurvature | None:
        """Return the curvature of a loss; None if it uses no trained parameter.

        Args:
            loss: the call of the loss, with the graph of its outputs.

        Raises:
            UnsupportedLayer: for a reentrant checkpoint.
            CurvatureTooLarge: for more than there is memory for.
            CurvatureMismatch: for a factor that is not that of the graph.
        """
        graph = Graph(loss.outputs, self._index)
        if graph.reentrant:
            self._refuse_reentrant(graph)
        if not graph.used:
            return None
        way, axes = self._plan(loss, graph)
        self._announce(way)
        columns = Columns(loss, axes, self._kind, self._draws)
        batch = Batch(columns.number, way.samples, self._dtype)
        blocks = blocks_of(way.claims, self._sizes, batch)
        z = loss.outputs[0]
        self._check_memory(blocks, way, batch, sum(output.numel() for output in loss.outputs), z.device)
        made = columns.make(self._generator)
        operator = self._factor(way, blocks, batch, made, z.device)
        if self._due(way):
            try:
                self._verify(operator, graph, made, axes, way.samples)
            except CurvatureMismatch:
                self._verified.clear()  # what is not finite is no proof; see `Capture`
                raise
        return LossCurvature(operator, columns.number, frozenset(graph.used))

    def not_finite(self, loss: LossCall) -> str:
        """Return which tensor behind a loss is the first that is not finite: a parameter, an input, or an output."""
        graph = Graph(loss.outputs, self._index)
        for index in sorted(graph.used):
            if not torch.isfinite(self._parameters[index]).all():
                return f"parameter {self._paths[index]!r}"
        for call in reversed(graph.calls):
            operation = RULES.get(call.name, UNKNOWN).operation(call)
            inputs = getattr(operation, "inputs", None)
            sources = [source_of(call.behind(edge)) for edge in (operation.roles if operation else ())]
            layers = [self._paths[source.parameter].rpartition(".")[0] for source in sources if source is not None]
            if inputs is not None and layers and not torch.isfinite(inputs).all():
                return f"input of {layers[0]!r}"
        return "loss" if all(bool(torch.isfinite(z).all()) for z in loss.outputs) else "output of the model"

    def _plan(self, loss: LossCall, graph: Graph) -> tuple[CapturePlan, list[Axis]]:
        """Return the grouping into samples with the fewest values to unpack, the usual one if there are several."""
        empirical = self._kind == "empirical"
        best = _best(loss, graph, further=not empirical)
        if empirical and best[0].unpacked_elements:
            # An exact F does not depend on which elements make up a sample; an empirical one does.
            other = _best(loss, graph, further=True)
            if other[0].unpacked_elements < best[0].unpacked_elements and loss.outputs[0].dim() > 1:
                raise UnsupportedCriterion(
                    "",
                    f"was given an input of shape {tuple(loss.outputs[0].shape)}, along whose leading dimension "
                    "samples mix while they lie apart along another, and curvature='empirical' depends on which "
                    "is meant; transpose input and target so that samples come first",
                )
        return best

    def _factor(
        self,
        way: CapturePlan,
        blocks: Sequence[BlockForm | int],
        batch: Batch,
        columns: Sequence[Tensor],
        place: torch.device,
    ) -> LayerRows:
        taking: list[BlockForm] = [block for block in blocks if isinstance(block, BlockForm)]
        widest = max((shape.numel() for step in way.steps for shape in step.call.outputs), default=1)
        several = max(1, PASS_ELEMENTS // max(1, widest))
        unpacked = Unpacked(way, self._sizes, batch.dtype) if way.spills else None
        kept: list[list[Tensor]] = [[] for _ in taking]
        rows: dict[int, list[Tensor]] = {index: [] for index in way.unpacked}
        for start in range(0, batch.columns, several):
            arrived = carry(way, [column[start : start + several] for column in columns])
            for parts, taker in zip(kept, taking, strict=True):
                parts.append(taker.keep([_first(arrived[call]) for call in taker.calls]))
            if unpacked is not None:
                for index, part in unpacked.rows(arrived).items():
                    rows[index].append(part.to(batch.dtype))
        made = iter([_joined(parts) for parts in kept])
        factors: list[BlockFactor] = []
        for block in blocks:
            if isinstance(block, BlockForm):
                factors.append(block.rows(next(made)))
            elif block in rows:
                factors.append(Rows(_joined(rows[block]).flatten(0, 1)))
            else:
                size = self._sizes[block]
                factors.append(ZeroRows(batch.columns, batch.samples, size, dtype=batch.dtype, device=place))
        return LayerRows(factors)

    def _check_memory(
        self, blocks: Sequence[BlockForm | int], way: CapturePlan, batch: Batch, outputs: int, place: torch.device
    ) -> None:
        sizes = []
        for block in blocks:
            if isinstance(block, BlockForm):
                fixed, per_column = block.fixed, block.per_column
                index, parameters = block.parameter, block.parameters
            else:
                index, parameters = block, self._sizes[block]
                fixed, per_column = 0, batch.samples * (parameters if block in way.unpacked else 1)
            path = self._paths[index].rpartition(".")[0] or self._paths[index]
            sizes.append(Size(path, fixed, per_column, batch.dtype.itemsize, parameters))
        check_memory(
            sizes,
            batch.columns,
            samples=batch.samples,
            parameters=sum(self._sizes),
            outputs=outputs,
            place=place,
            device=self.device,
            link_itemsize=self.link_itemsize,
        )

    def _due(self, way: CapturePlan) -> bool:
        """Return whether the factor of this graph, with samples that lie where they do, has to be verified."""
        if self._check != "first":
            return self._check == "always"
        functions = tuple((call.name, call.outputs[0]) for call in way.graph.calls)
        recorded = hash((functions, tuple(axis for step in way.steps for axis in step.axes)))
        if recorded in self._verified:
            return False
        if len(self._verified) >= MAX_GRAPHS:
            self._verified.clear()
        self._verified.add(recorded)
        return True

    def _verify(
        self, operator: LayerRows, graph: Graph, columns: Sequence[Tensor], axes: Sequence[Axis], samples: int
    ) -> None:
        """Compare Σ ω_ki row_ki with the gradient of Σ ω_ki s_ki·z_i, for random ω, parameter by parameter.

        A factor with a wrong row differs from it, but for a set of ω of measure zero (as in Freivalds' verification of
        a matrix product, 1977). The gradient comes from the functions' own derivatives: neither rules nor forms have a
        part in it.

        Raises:
            CurvatureMismatch: naming the parameter.
        """
        c, z = len(columns[0]), columns[0]
        generator = torch.Generator(z.device).manual_seed(0)  # the training's random numbers are as without a capture
        weights = torch.randn(c, samples, dtype=self._dtype, device=z.device, generator=generator)
        cotangents = [_weighted(one, axis, weights) for one, axis in zip(columns, axes, strict=True)]
        expected = gradients(graph, cotangents)
        found = operator.adjoint(weights.flatten()).split(self._sizes)
        dtypes = {dtype for call in graph.calls for dtype in call.dtypes}
        rough = max(map(_eps, dtypes), default=0.0)
        if z.device.type == "cuda" and torch.float32 in dtypes and _tf32():
            rough = max(rough, TF32_EPS)
        total = torch.stack([value.to(self._dtype).square().sum() for value in expected.values()]).sum().sqrt()
        # Where all rows vanish, both sides are rounding.
        floor = 100 * rough * torch.stack([cotangent.to(self._dtype).norm() for cotangent in cotangents]).max()
        off = []
        for index, part in enumerate(found):
            there = expected[index].to(self._dtype).flatten() if index in expected else torch.zeros_like(part)
            error, size = (part - there).norm(), there.norm()
            off.append(error - rough**0.5 * (size + rough**0.25 * total) - floor)
        worst = torch.stack(off)
        if not bool((worst <= 0).all()):  # NaN is not
            self._mismatch(int(worst.nan_to_num(torch.inf).argmax()))

    def _refuse_reentrant(self, graph: Graph) -> None:
        hidden = [path for index, path in enumerate(self._paths) if index not in graph.used]
        raise UnsupportedLayer(
            hidden[0].rpartition(".")[0] if hidden else "",
            f"may be inside a reentrant checkpoint, where no parameter shows (missing: {', '.join(hidden)}); call "
            "torch.utils.checkpoint.checkpoint with use_reentrant=False",
        )

    def _mismatch(self, index: int) -> None:
        raise CurvatureMismatch(
            self._paths[index],
            "has rows that are not those of the recorded graph, because a rule for one of the functions that use it is "
            "wrong; report the model, and until then leave the parameter to Adam by a parameter group",
        )

    def _announce(self, way: CapturePlan) -> None:
        """Warn once of a layer that it costs more, and once of a function whose derivative is approximate."""
        layers: dict[str, str] = {}
        for index, function in sorted(way.unpacked.items()):
            layers.setdefault(self._paths[index].rpartition(".")[0] or self._paths[index], function)
        for layer, function in layers.items():
            if self._new(layer):
                warnings.warn(
                    CurvatureFallback(
                        f"{layer!r}: samples are not followed through {function.removesuffix('Backward0')}, so the "
                        "rows of this layer's parameters cost a backward pass for each column and sample at each step; "
                        "to avoid that, freeze it or leave it to Adam by a parameter group"
                    ),
                    stacklevel=of_the_user(),
                )
        for call, left_out in way.approximations():
            if self._new(call.name):
                warnings.warn(
                    CurvatureApproximation(
                        f"F leaves out {left_out} in {call.name.removesuffix('Backward0')}: no sample has rows of its "
                        "own; use GroupNorm, or put the layer in eval mode, for an exact F"
                    ),
                    stacklevel=of_the_user(),
                )

    def _new(self, subject: str) -> bool:
        known = subject in self._announced
        self._announced.add(subject)
        return not known


def _best(loss: LossCall, graph: Graph, *, further: bool) -> tuple[CapturePlan, list[Axis]]:
    """Return the plan with the fewest values to unpack, and where it has the samples in the outputs."""
    best: tuple[CapturePlan, list[Axis]] | None = None
    for axes in ways_to_group(loss, graph, further=further):
        found = plan(graph, axes, axes[0].count)
        if best is None or found.unpacked_elements < best[0].unpacked_elements:
            best = found, axes
        if not best[0].unpacked_elements:
            break
    assert best is not None
    return best


def of_the_user() -> int:
    """Return the stack level, for a warning of the caller, of the line that runs neither here nor in torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "host_client",
        "torch",
    ):
        frame, level = frame.f_back, level + 1
    return level


def _weighted(columns: Tensor, axis: Axis, weights: Tensor) -> Tensor:
    """Σ_k of the columns, weighted sample by sample, in the shape of the output."""
    return axis.scale(columns, weights.to(columns.dtype)).sum(0)


def _tf32() -> bool:
    """Return whether products of float32 numbers may be those of TF32 numbers on a GPU."""
    try:
        return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # torch's newer settings are in use, which these do not show
        return True


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0


def _first(values: Sequence[Tensor | None]) -> Tensor:
    return next(value for value in values if value is not None)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts))
