"""Random models: a list of operations with all their choices, from which the same model can be reproduced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from tests.host_client.curvature.exploration import arithmetic, layers, routing, unusual
from tests.host_client.curvature.exploration.brief import Brief, rarely
from tests.host_client.curvature.exploration.operations import OPERATIONS, Data, Place, Shapes

MODULES = (arithmetic, layers, routing, unusual)
"""Modules of the operations; importing them fills the table."""

MAX_ELEMENTS = 48
"""Of a tensor in the model."""

MAX_PARAMETERS = 60
"""Trained, before the heads."""

MAX_OUTPUTS = 24
"""Elements of the criterion's input; a row of the reference costs a backward pass each."""

LAYOUTS: tuple[tuple[str | int, ...], ...] = (
    ("b", 3),
    ("b", 2),
    ("b", "t", 2),
    ("t", "b", 2),
    ("b", 2, "t"),
    ("b", 2, 3),
    (2, "b"),
    ("b", 1, 2, 3),
    ("b", 4, 2, 2),
    ("t", 2, "b"),
    ("b",),
)
"""Input shapes: b samples and t tokens change from pass to pass, other extents are fixed."""


@dataclass(frozen=True, repr=False)
class Batch(Brief):
    """The data of one pass.

    Attributes:
        samples: b.
        tokens: t.
        seed: of everything random in it: inputs, targets, index tensors, masks, lengths.
        regular: index tensors, masks and lengths are as simple as can be, see `Data`.
    """

    samples: int
    tokens: int = 2
    seed: int = 0
    regular: bool = False

    def shape(self, layout: Sequence[str | int]) -> tuple[int, ...]:
        """Return the shape of the input in a layout."""
        extents = {"b": self.samples, "t": self.tokens}
        return tuple(extents[extent] if isinstance(extent, str) else extent for extent in layout)

    def generator(self, purpose: int) -> torch.Generator:
        """Return a generator for one purpose, the same one whenever it is asked for."""
        return torch.Generator().manual_seed(1_000 * self.seed + purpose)

    def data(self, step: int) -> Data:
        """Return the data of a step of the model."""
        return Data(1_000 * self.seed + step, regular=self.regular)

    def inputs(self, layout: Sequence[str | int]) -> Tensor:
        """Draw the input."""
        return torch.randn(self.shape(layout), generator=self.generator(999), dtype=torch.float64)


@dataclass(frozen=True, repr=False)
class Step(Brief):
    """One operation of a program.

    Attributes:
        operation: its name, or ``"again"`` for another call of an earlier step's layers.
        choices: those of the operation; for ``"again"`` the number of the earlier step.
        wrap: ``"residual"`` adds an operand of the same shape; ``"checkpoint"`` recomputes it in backward passes.
        skipped: by python, in passes whose seed modulo four is one of these.
        frozen: its parameters are not trained.
    """

    operation: str
    choices: dict[str, Any] = field(default_factory=dict)
    wrap: str = "plain"
    skipped: tuple[int, ...] = ()
    frozen: bool = False


@dataclass(frozen=True, repr=False)
class Head(Brief):
    """A linear layer from the result of a step to the input z of a criterion.

    Attributes:
        after: number of steps before it.
        width: features of z.
        axis: of the features in the operand; None to add one.
        averaged: axes that are averaged over.
        form: how the features lie in z: ``"last"``, ``"second"``, ``"rows"`` with all else flattened, or ``"flat"``.
        outside: whether z takes this form behind the model.
        bias: whether it has one.
    """

    after: int
    width: int
    axis: int | None
    averaged: tuple[int, ...] = ()
    form: str = "rows"
    outside: bool = False
    bias: bool = True

    def create(self, shape: Sequence[int]) -> nn.Linear:
        """Return its layer."""
        return nn.Linear(1 if self.axis is None else shape[self.axis], self.width, self.bias).double()

    def features(self, layer: nn.Module, h: Tensor) -> Tensor:
        """Return the features, in the last dimension."""
        if self.averaged:
            h = h.mean(self.averaged, keepdim=True)
        moved = h.unsqueeze(-1) if self.axis is None else h.movedim(self.axis, -1)
        result: Tensor = layer(moved)
        return result

    def shaped(self, features: Tensor) -> Tensor:
        """Return z."""
        if self.form == "rows":
            return features.reshape(-1, self.width)
        if self.form == "flat":
            return features.flatten()
        return features.movedim(-1, 1) if self.form == "second" else features

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of z for an operand of this shape."""
        kept = [1 if i in self.averaged else extent for i, extent in enumerate(shape) if i != self.axis]
        return tuple(self.shaped(torch.empty(*kept, self.width)).shape)


@dataclass(frozen=True, repr=False)
class Watch(Brief):
    """A user's own hook in a model: it observes and changes nothing.

    Attributes:
        step: at which step.
        kind: one of `WATCHES`.
    """

    step: int
    kind: str


WATCHES = ("retain_grad", "tensor hook", "node hook", "module hook", "parameter hook", "accumulation hook")


@dataclass(frozen=True, repr=False)
class Program(Brief):
    """A model.

    Attributes:
        layout: of its input, one of `LAYOUTS`.
        steps: run one after the other.
        heads: one or two.
        returns: ``"z"``, ``"tuple"`` with the last hidden state before the heads' outputs, or ``"dict"``.
        differentiable: whether its input requires grad.
        watches: the user's hooks.
    """

    layout: tuple[str | int, ...]
    steps: tuple[Step, ...]
    heads: tuple[Head, ...]
    returns: str = "z"
    differentiable: bool = False
    watches: tuple[Watch, ...] = ()

    def operations(self) -> set[str]:
        """Return the names of the operations it uses."""
        return {step.operation for step in self.steps}

    def precision(self) -> float:
        """Return the relative error of F that its arithmetic causes."""
        return max([1e-9, *(OPERATIONS[s.operation].precision for s in self.steps if s.operation in OPERATIONS)])


class Block(nn.Module):
    """The step of a program, with its parameters."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.place = Place()

    def forward(self, h: Tensor, data: Data) -> Tensor:
        """Run the operation."""
        if self.step.wrap == "checkpoint" and self.place.complete:
            return checkpoint(self._run, h, data, use_reentrant=False)  # type: ignore[no-any-return]
        result = self._run(h, data)
        return h + result if self.step.wrap == "residual" and result.shape == h.shape else result

    def _run(self, h: Tensor, data: Data) -> Tensor:
        self.place.data = data.restart()
        return OPERATIONS[self.step.operation].run(self.place, h, **self.step.choices)

    def complete(self) -> None:
        """Fix the parameters after the first pass."""
        self.place.complete = True
        if self.step.frozen:
            self.requires_grad_(False)


class Network(nn.Module):
    """The model of a program.

    Attributes:
        watched: what the program's watches saw: calls counted, and tensors whose gradients are retained.
    """

    def __init__(self, program: Program, batch: Batch, *, watch: bool = False) -> None:
        super().__init__()
        self.program = program
        self.blocks, self.heads = nn.ModuleList(), nn.ModuleList()
        self.counts, self.retained = [0] * len(program.watches), list[Tensor]()
        h = batch.inputs(program.layout)
        hidden = [h]
        with torch.no_grad():
            for number, step in enumerate(program.steps):
                self.blocks.append(create_block(step, self.blocks))
                h = self.blocks[-1](h, batch.data(number))
                self.blocks[-1].complete()
                hidden.append(h)
        self.heads.extend(head.create(hidden[head.after].shape) for head in program.heads)
        self._watching = watch
        if watch:
            self._watch_modules()

    def forward(self, x: Tensor, batch: Batch) -> Any:
        """Return the heads' outputs as the program says."""
        h, hidden = x, [x]
        for number, (step, block) in enumerate(zip(self.program.steps, self.blocks, strict=True)):
            if batch.seed % 4 not in step.skipped:
                h = block(h, batch.data(number))
            if self._watching:
                self._watch_tensor(number, h)
            hidden.append(h)
        outputs = []
        for head, layer in zip(self.program.heads, self.heads, strict=True):
            features = head.features(layer, hidden[head.after])
            outputs.append(features if head.outside else head.shaped(features))
        if self.program.returns == "dict":
            return {"state": h, "outputs": outputs}
        return (h, *outputs) if self.program.returns == "tuple" or len(outputs) > 1 else outputs[0]

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Call the model and return the z of each head."""
        x = batch.inputs(self.program.layout).requires_grad_(self.program.differentiable)
        result = self(x, batch)
        if isinstance(result, dict):
            outputs = result["outputs"]
        else:
            outputs = result[1:] if isinstance(result, tuple) else [result]
        return [h.shaped(z) if h.outside else z for h, z in zip(self.program.heads, outputs, strict=True)]

    def _watch_modules(self) -> None:
        for number, watch in enumerate(self.program.watches):
            block = self.blocks[watch.step]
            handles: list[RemovableHandle] = []
            if watch.kind == "module hook":
                handles.append(block.register_full_backward_hook(lambda *_, n=number: self._count(n)))
            trained = [p for p in block.parameters() if p.requires_grad]
            if watch.kind == "parameter hook":
                handles += [p.register_hook(lambda _, n=number: self._count(n)) for p in trained]
            if watch.kind == "accumulation hook":
                handles += [p.register_post_accumulate_grad_hook(lambda _, n=number: self._count(n)) for p in trained]

    def _watch_tensor(self, step: int, h: Tensor) -> None:
        if not (h.requires_grad and h.grad_fn is not None):
            return
        for number, watch in enumerate(self.program.watches):
            if watch.step != step:
                continue
            if watch.kind == "retain_grad":
                h.retain_grad()
                self.retained.append(h)
            elif watch.kind == "tensor hook":
                h.register_hook(lambda _, n=number: self._count(n))
            elif watch.kind == "node hook":
                h.grad_fn.register_hook(lambda *_, n=number: self._count(n))

    def _count(self, number: int) -> None:
        self.counts[number] += 1


def create_block(step: Step, earlier: Sequence[nn.Module]) -> nn.Module:
    """Return the module of a step: for ``"again"`` that of an earlier one."""
    return earlier[step.choices["step"]] if step.operation == "again" else Block(step)


def programs(
    batches: Sequence[Batch], *, focus: str | None, longest: int, forms: Sequence[str], widths: Sequence[int]
) -> st.SearchStrategy[Program]:
    """Draw a model that can take each of these batches.

    Args:
        batches: of all passes.
        focus: an operation that is in the model, behind trained parameters if possible.
        longest: number of further steps at most.
        forms: of the heads that the criterion can take.
        widths: of the heads that the criterion can take.
    """
    return _programs(batches, focus, longest, forms, widths)


class _Draft:
    """A program that grows: what its steps make of each batch, and where it can go on."""

    def __init__(self, layout: Sequence[str | int], batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.steps: list[Step] = []
        self.blocks: list[nn.Module] = []
        self.hidden = [[batch.inputs(layout) for batch in batches]]

    def shapes(self) -> Shapes:
        """Return the shapes of the last results."""
        return [tuple(h.shape) for h in self.hidden[-1]]

    def applicable(self, names: Iterable[str]) -> list[str]:
        """Return the operations that can come next."""
        shapes = self.shapes()
        return [name for name in names if OPERATIONS[name].applies(shapes)]

    def choices(self, name: str) -> st.SearchStrategy[dict[str, Any]]:
        """Return what an operation may choose if it comes next."""
        return OPERATIONS[name].strategy(self.shapes())

    def append(self, step: Step) -> bool:
        """Append a step unless its results are too large, empty or not finite; return whether it was."""
        block = create_block(step, self.blocks)
        try:
            with torch.no_grad():
                results = [
                    block(h, batch.data(len(self.steps)))
                    for h, batch in zip(self.hidden[-1], self.batches, strict=True)
                ]
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            if step.operation != "again":  # layers for another shape
                raise
            return False
        if step.operation != "again":
            block.complete()  # type: ignore[operator]
        fine = all(0 < r.numel() <= MAX_ELEMENTS and r.dim() <= 5 and r.isfinite().all() for r in results)
        same = all(r.shape == h.shape for r, h in zip(results, self.hidden[-1], strict=True))
        if not fine or len({r.dim() for r in results}) > 1 or _parameters([*self.blocks, block]) > MAX_PARAMETERS:
            return False
        if not same:
            step = replace(step, skipped=())
        self.steps.append(step)
        self.blocks.append(block)
        skips = [batch.seed % 4 in step.skipped for batch in self.batches]
        self.hidden.append([h if skip else r for h, r, skip in zip(self.hidden[-1], results, skips, strict=True)])
        return True


OPENINGS = ("linear", "scale", "bias", "matmul", "embedding", "temperature")
"""Operations with parameters that apply nearly anywhere: gradients flow through whatever follows."""


@st.composite
def _programs(
    draw: st.DrawFn,
    batches: Sequence[Batch],
    focus: str | None,
    longest: int,
    forms: Sequence[str],
    widths: Sequence[int],
) -> Program:
    torch.manual_seed(0)  # parameters decide whether a result is finite, and so what is drawn
    layouts = [layout for layout in LAYOUTS if focus is None or _Draft(layout, batches).applicable([focus])]
    assume(layouts)
    layout = draw(st.sampled_from(layouts))
    draft = _Draft(layout, batches)
    opening = draw(st.sampled_from(draft.applicable(OPENINGS)))
    draft.append(Step(opening, draw(draft.choices(opening))))
    if focus is not None:
        if not draft.applicable([focus]):
            draft = _Draft(layout, batches)
        assume(draft.append(draw(_steps(draft, [focus]))))
    for _ in range(draw(st.integers(0, longest))):
        if rarely(draw, 10) and draft.steps:
            draft.append(Step("again", {"step": draw(st.integers(0, len(draft.steps) - 1))}))
        else:
            draft.append(draw(_steps(draft, draft.applicable(OPERATIONS))))
    hidden, steps = draft.hidden, draft.steps
    heads = [draw(_heads(hidden[-1], len(steps), forms, widths))]
    if rarely(draw, 5):
        after = draw(st.integers(0, len(steps)))
        heads.append(draw(_heads(hidden[after], after, forms, widths)))
    watches = draw(st.lists(_watches(len(steps)), max_size=2)) if steps else []
    watches = [watch for watch in watches if not _called_by_a_recomputation(watch, steps)]
    return Program(
        layout,
        tuple(steps),
        tuple(heads),
        returns=draw(st.sampled_from(("z", "z", "tuple", "dict"))),
        differentiable=rarely(draw, 6),
        watches=tuple(watches),
    )


@st.composite
def _steps(draw: st.DrawFn, draft: _Draft, names: Sequence[str]) -> Step:
    name = draw(st.sampled_from(names))
    skipped = draw(st.sampled_from(((0,), (1, 2), (3,)))) if rarely(draw, 10) else ()
    wrap = draw(st.sampled_from(("checkpoint", "residual"))) if rarely(draw, 4) else "plain"
    if wrap == "checkpoint" and not OPERATIONS[name].recomputable:
        wrap = "plain"
    return Step(name, draw(draft.choices(name)), wrap, skipped, frozen=rarely(draw, 12))


def _parameters(blocks: Sequence[nn.Module]) -> int:
    return sum(p.numel() for p in {p for block in blocks for p in block.parameters()} if p.requires_grad)


@st.composite
def _heads(draw: st.DrawFn, hidden: Sequence[Tensor], after: int, forms: Sequence[str], widths: Sequence[int]) -> Head:
    shapes = [tuple(h.shape) for h in hidden]
    width = draw(st.sampled_from(widths))
    fixed = [i for i in range(len(shapes[0])) if len({s[i] for s in shapes}) == 1 and shapes[0][i] <= 6]
    axis = draw(st.sampled_from([*fixed[::-1], None])) if fixed else None
    others = [i for i in range(len(shapes[0])) if i != axis]
    averaged: list[int] = []
    head = Head(after, width, axis)
    while max(torch.Size(head.shape(shape)).numel() for shape in shapes) > MAX_OUTPUTS:
        averaged.append(max((i for i in others if i not in averaged), key=lambda i: max(s[i] for s in shapes)))
        head = Head(after, width, axis, tuple(averaged))
    usable = [form for form in forms if form != "second" or others]
    return Head(
        after,
        width,
        axis,
        tuple(averaged),
        form=draw(st.sampled_from(usable)),
        outside=draw(st.booleans()),
        bias=draw(st.booleans()),
    )


def _called_by_a_recomputation(watch: Watch, steps: Sequence[Step]) -> bool:
    """Return whether a hook belongs to what a checkpoint differentiates with respect to: docs/curvature.md says so."""
    first = {"retain_grad": 1, "tensor hook": 1, "node hook": 1, "parameter hook": 0}.get(watch.kind, len(steps))
    at = steps[watch.step + first : watch.step + first + 1]
    inside = [f for step in at if step.wrap == "checkpoint" for f in OPERATIONS[step.operation].functions]
    return any("autograd.grad" in f for f in inside)


@st.composite
def _watches(draw: st.DrawFn, steps: int) -> Watch:
    return Watch(draw(st.integers(0, steps - 1)), draw(st.sampled_from(WATCHES)))
