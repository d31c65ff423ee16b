"""From a recorded forward pass and cotangents of what came out of it to the factor of a curvature."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from host_client.curvature.blocks import blocks_of
from host_client.curvature.claims import belong_together, claims_of
from host_client.curvature.cotangents import Taker, backpropagate
from host_client.curvature.errors import CurvatureFallback, UnsupportedLayer
from host_client.curvature.fallback import rows_by_autograd
from host_client.curvature.forms import Batch, Block
from host_client.curvature.graph import Graph
from host_client.curvature.layouts import Layout, Order, Probes, Trace, candidates, traces
from host_client.curvature.losses import Kind, loss_columns, loss_root
from host_client.curvature.memory import Size, check_memory
from host_client.curvature.passes import sample_counts
from host_client.curvature.recorder import Recording, Use
from host_client.curvature.rules.broadcast import Broadcast
from host_client.curvature.rules.embedding import Embedding
from host_client.curvature.settle import settle
from host_client.links.base import Capacity
from spu_link.operators import LayerRows, Rows
from spu_link.operators.base import BlockFactor

Site = tuple[tuple[int, ...], int, int]
"""A use of the model's parameters: paths of the passes, number of the use, dimensions of the output."""

MOST_SITES = 1 << 16
"""Sites that are remembered; a model that takes another path each time would fill the memory with them."""


class Linearise:
    """Makes factors of one model's passes, and remembers where samples lie in it.

    Args:
        parameters: the trained ones with their dotted paths, in the order of the columns.
        kind, draws, generator: of the curvature, see `loss_root`.

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
    ) -> None:
        self._kind: Kind = kind
        self._draws, self._generator = draws, generator
        self._paths = [path for path, _ in parameters]
        self._parameters = [parameter for _, parameter in parameters]
        double = any(parameter.dtype == torch.float64 for parameter in self._parameters)
        self._dtype = torch.float64 if double else torch.float32
        self._known: dict[Site, tuple[int, Order] | None] = {}
        self._counts: dict[tuple[int, ...], int] = {}
        self._announced: set[int] = set()
        self.device: Capacity | None = None
        self.link_itemsize: int | None = None

    def __call__(
        self, criterion: nn.Module, z: Tensor, target: Tensor, recordings: Sequence[Recording], graph: Graph
    ) -> tuple[LayerRows, int]:
        """The factor A = SᵀJ of the trained parameters.

        Args:
            criterion: the loss.
            z: what it was given, with its graph.
            target: its target.
            recordings: of the forward passes in that graph.
            graph: the graph.

        Returns:
            The factor, with rows in the order (column, sample), and the number of columns c.

        Raises:
            UnsupportedLayer: for parameters that are not used, and for layers where samples mix.
            UnsupportedCriterion: for targets that do not fit.
            CurvatureTooLarge: for more than there is memory for.
        """
        uses, unruled = settle(recordings, graph, self._parameters)
        paths: tuple[int, ...] | None = tuple(recording.path for recording in recordings)
        if graph.scrambles({node for recording in recordings for _, _, node in recording.unruled}):
            paths = None
        samples, uses, layouts, unruled = self._apart(z, uses, unruled, sample_counts(z, recordings), paths)
        c = loss_columns(criterion, z, target, samples=samples, kind=self._kind, draws=self._draws)
        batch = Batch(c, samples, self._dtype)
        blocks = self._blocks(uses, layouts, unruled, batch)
        self._check_memory(blocks, batch, z)
        columns = loss_root(
            criterion,
            z,
            target,
            samples=samples,
            kind=self._kind,
            draws=self._draws,
            generator=self._generator,
            columns=c,
        )
        edges = [GradientEdge(use.node, use.output_nr) for use in uses]
        shapes = [use.shape for use in uses]
        takers = [block.taker for block in blocks if isinstance(block, Block)]
        kept = iter(backpropagate(z, columns, edges, shapes, takers))
        others: dict[int, Tensor] = {}
        if unruled:
            self._announce(unruled, batch)
            widest = max(shape.numel() for shape in [*shapes, z.shape])
            parameters = [self._parameters[index] for index in unruled]
            rows = rows_by_autograd(z, columns, parameters, samples=samples, widest=widest)
            others = dict(zip(unruled, rows, strict=True))
        factors: list[BlockFactor] = [
            block.rows(next(kept)) if isinstance(block, Block) else Rows(others[block].to(self._dtype))
            for block in blocks
        ]
        return LayerRows(factors), c

    def _check_memory(self, blocks: Sequence[Block | int], batch: Batch, z: Tensor) -> None:
        sizes = []
        for block in blocks:
            if isinstance(block, Block):
                fixed, per_column = block.fixed, block.per_column
                index, parameters = block.parameter, block.parameters
            else:
                index, parameters = block, self._parameters[block].numel()
                fixed, per_column = 0, batch.samples * parameters
            path = self._paths[index].rpartition(".")[0] or self._paths[index]
            sizes.append(Size(path, fixed, per_column, self._dtype.itemsize, parameters))
        check_memory(
            sizes,
            batch.columns,
            samples=batch.samples,
            parameters=sum(parameter.numel() for parameter in self._parameters),
            outputs=z.numel(),
            place=z.device,
            device=self.device,
            link_itemsize=self.link_itemsize,
        )

    def _apart(
        self,
        z: Tensor,
        uses: Sequence[Use],
        unruled: Mapping[int, str],
        counts: Sequence[int],
        paths: tuple[int, ...] | None,
    ) -> tuple[int, list[Use], list[Layout], dict[int, str]]:
        """The number of samples with which the fewest parameters are unruled, and the layouts then.

        A model that flattens positions into its output has a row for each position: one by one they mix.

        Raises:
            UnsupportedLayer: when samples mix whatever their number.
        """
        found: list[tuple[int, list[Use], list[Layout], dict[int, str]]] = []
        refused: list[UnsupportedLayer] = []
        before = None if paths is None else self._counts.get(paths)
        for samples in sorted(counts, key=lambda n: counts.index(n) != before):
            without = dict(unruled)
            try:
                placed = self._layouts(
                    z, uses, without, samples, None if paths is None else (*paths, counts.index(samples))
                )
            except UnsupportedLayer as refusal:
                refused.append(refusal)
                continue
            found.append((samples, *placed, without))
            if len(without) == len(unruled):
                break
        if not found:
            raise refused[0]
        best = min(found, key=lambda one: len(one[-1]))
        if paths is not None and len(counts) > 1:
            self._counts[paths] = counts.index(best[0])
        return best

    def _layouts(
        self, z: Tensor, uses: Sequence[Use], unruled: dict[int, str], samples: int, paths: tuple[int, ...] | None
    ) -> tuple[list[Use], list[Layout]]:
        """Where the samples lie in each use's output; the parameters of uses where they cannot be told are unruled.

        Without `paths` nothing is remembered.
        """
        found: list[Layout | None] = []
        sites: list[Site | None] = []
        choices: list[list[Layout]] = []
        unknown: list[int] = []
        for number, use in enumerate(uses):
            site = None if paths is None else (paths, number, len(use.shape))
            possible = candidates(use.shape, _sample_dims(use), samples)
            known = None if site is None else self._known.get(site)
            layout = next((one for one in possible if (one.dim, one.order) == known), None)
            if layout is None and samples == 1:
                layout = possible[0]
            if layout is None and possible and not (site in self._known and known is None):
                unknown.append(number)
            found.append(layout)
            sites.append(site)
            choices.append(possible)
        if unknown:
            if len(self._known) > MOST_SITES:
                self._known.clear()
                self._counts.clear()
            for number, layout, certain in self._probed(z, uses, choices, unknown, samples):
                found[number] = layout
                site = sites[number]
                if certain and site is not None:
                    self._known[site] = None if layout is None else (layout.dim, layout.order)
        for use, layout in zip(uses, found, strict=True):
            if layout is None:
                for source in use.sources.values():
                    unruled.setdefault(source.parameter, f"{use.function} for all samples together")
        placed = [
            (use, layout)
            for use, layout in zip(uses, found, strict=True)
            if layout is not None and any(source.parameter not in unruled for source in use.sources.values())
        ]
        return [use for use, _ in placed], [layout for _, layout in placed]

    def _probed(
        self, z: Tensor, uses: Sequence[Use], choices: Sequence[Sequence[Layout]], numbers: Sequence[int], samples: int
    ) -> list[tuple[int, Layout | None, bool]]:
        """For each of the uses numbered, where the samples lie, and whether that is certain."""
        dims = [_sample_dims(uses[number]) for number in numbers]
        arrived = backpropagate(
            z,
            Probes(z, samples),
            [GradientEdge(uses[number].node, uses[number].output_nr) for number in numbers],
            [uses[number].shape for number in numbers],
            [Taker([i], partial(_traces, kept)) for i, kept in enumerate(dims)],
        )
        result: list[tuple[int, Layout | None, bool]] = []
        for number, kept, one in zip(numbers, dims, arrived, strict=True):
            trace, use, possible = Trace.of(one), uses[number], choices[number]
            fitting = [layout for layout in possible if trace.fits(layout, kept)]
            if trace.mixed or not fitting:
                if not isinstance(use.operation, (Broadcast, Embedding)) and use.shape[0] == samples:
                    self._refuse_mixing(use)
                result.append((number, None, True))
            else:
                # Where nothing arrived, any layout is right for once; it is looked at again the next time.
                certain = len(possible) == 1 or (len(fitting) == 1 and bool(trace.arrived.any()))
                result.append((number, fitting[0], certain))
        return result

    def _refuse_mixing(self, use: Use) -> None:
        path = self._paths[next(iter(use.sources.values())).parameter].rpartition(".")[0]
        raise UnsupportedLayer(
            path,
            f"({use.function}) has an output in which samples mix: what one sample leaves there reaches the loss of "
            "another, so they have no Jacobian rows of their own; keep samples apart between it and the criterion",
        )

    def _blocks(
        self, uses: Sequence[Use], layouts: Sequence[Layout], unruled: dict[int, str], batch: Batch
    ) -> list[Block | int]:
        """The blocks in the order of the parameters; for one that no rule serves, its index."""
        claims = claims_of(uses, layouts, unruled)
        sizes = [parameter.numel() for parameter in self._parameters]
        blocks: list[Block | int] = []
        index = 0
        while index < len(sizes):
            if index in unruled:
                blocks.append(index)
            elif index not in claims:
                self._refuse_unused(index)
            else:
                weight, bias = claims[index], claims.get(index + 1, [])
                pair = sizes[index], sizes[index + 1] if bias else 0
                if not belong_together(weight, bias, pair):
                    bias = []
                blocks += blocks_of(weight, bias, pair, batch)
                index += bool(bias)
            index += 1
        return blocks

    def _refuse_unused(self, index: int) -> None:
        path, _, name = self._paths[index].rpartition(".")
        reason = (
            "does not influence what the criterion was given, or was used without gradients (a checkpoint needs "
            "use_reentrant=False); freeze it with requires_grad_(False), or leave it to Adam by a parameter group"
            if self._parameters[index].requires_grad
            else "has been frozen since the optimizer was made; replace that by a new one"
        )
        raise UnsupportedLayer(path, f"has a trained parameter {name!r} that {reason}")

    def _announce(self, unruled: dict[int, str], batch: Batch) -> None:
        for index, function in unruled.items():
            if index not in self._announced:
                self._announced.add(index)
                warnings.warn(
                    CurvatureFallback(
                        f"parameter {self._paths[index]!r} is used by {function}, which has no rule here: its rows "
                        f"cost a backward pass through the model for each of {batch.columns} columns and "
                        f"{batch.samples} samples, at each step; to avoid that, freeze it or leave it to "
                        "Adam by a parameter group"
                    ),
                    stacklevel=2,
                )


def _traces(dims: Sequence[int], cotangents: Sequence[Tensor]) -> Tensor:
    return traces(cotangents[0], dims)


def _sample_dims(use: Use) -> tuple[int, ...]:
    return tuple(use.operation.sample_dims(use.shape, use.sources.keys()))
