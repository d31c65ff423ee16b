"""Random training loops: what is computed, differentiated and dropped between two steps of an optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.host_client.curvature.exploration.brief import Brief, rarely
from tests.host_client.curvature.exploration.programs import Batch


class Runner(Protocol):
    """State that an action of a loop works with."""

    model: nn.Module
    kept: list[Tensor]

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters."""
        ...

    def losses(self, batch: Batch, heads: Sequence[int], targets: int) -> list[Tensor]:
        """Call the model, and the criterion on the outputs of these heads with so many different targets."""
        ...

    def counts(self, losses: Sequence[Tensor], factor: float) -> None:
        """Note that the gradients of the sum of the losses are in ``.grad``, multiplied by a factor."""
        ...

    def dropped(self) -> None:
        """Note that what is in ``.grad`` has been dropped."""
        ...


WEIGHTS = (1.0, 0.4, 0.7, 0.25)
"""Of the losses that a single backward pass adds up."""


@dataclass(frozen=True, repr=False)
class Backward(Brief):
    """One backward pass, whose gradients count.

    Attributes:
        batches: their losses are added up, with different weights if `weighted`.
        heads: of the model that are used, numbered modulo the heads that there are.
        targets: number of calls of the criterion for each output.
        factor: the loss is multiplied by it.
        by: ``"product"``, ``"quotient"``, or ``"gradient"`` for an argument of `backward`.
        times: number of backward passes through the same graph.
        before: what is differentiated by `torch.autograd.grad` before: nothing, ``"loss"`` or ``"sum"``.
        after: the same after it.
        kept: the loss is kept in a list.
    """

    batches: tuple[Batch, ...]
    heads: tuple[int, ...] = (0,)
    targets: int = 1
    weighted: bool = False
    factor: float = 1.0
    by: str = "product"
    times: int = 1
    before: str = ""
    after: str = ""
    kept: bool = False

    def run(self, runner: Runner) -> None:
        """Differentiate the losses of the batches."""
        losses = [loss for batch in self.batches for loss in runner.losses(batch, self.heads, self.targets)]
        weights = [WEIGHTS[i % len(WEIGHTS)] if self.weighted else 1.0 for i in range(len(losses))]
        terms = [weight * loss if self.weighted else loss for weight, loss in zip(weights, losses, strict=True)]
        total = terms[0] if len(terms) == 1 else torch.stack(terms).sum()
        if self.kept:
            runner.kept.append(total)
        self._differentiate(self.before, runner, losses[0], total)
        for number in range(self.times):
            retained = number + 1 < self.times or bool(self.after)
            if self.by == "gradient":
                total.backward(torch.tensor(self.factor, dtype=total.dtype), retain_graph=retained)
            elif self.by == "quotient":
                (total / (1 / self.factor)).backward(retain_graph=retained)
            else:
                (total if self.factor == 1.0 else self.factor * total).backward(retain_graph=retained)
            for weight, loss in zip(weights, losses, strict=True):
                runner.counts([loss], weight * self.factor)
        self._differentiate(self.after, runner, losses[0], total)

    def _differentiate(self, which: str, runner: Runner, loss: Tensor, total: Tensor) -> None:
        if which:
            differentiated = loss if which == "loss" else total
            torch.autograd.grad(differentiated, runner.parameters(), retain_graph=True, allow_unused=True)


@dataclass(frozen=True, repr=False)
class Differentiate(Brief):
    """A loss whose gradients `torch.autograd.grad` returns, so that they do not count.

    Attributes:
        batch: of the loss.
        create_graph: for a penalty on the gradient, say, that is then not used.
    """

    batch: Batch
    create_graph: bool = False

    def run(self, runner: Runner) -> None:
        """Return the gradients to nobody."""
        (loss,) = runner.losses(self.batch, (0,), 1)
        torch.autograd.grad(loss, runner.parameters(), create_graph=self.create_graph, allow_unused=True)


@dataclass(frozen=True, repr=False)
class Forward(Brief):
    """A forward pass that is not differentiated.

    Attributes:
        batch: of the pass.
        mode: ``"train"``, ``"loss"`` with a call of the criterion, ``"eval"``, ``"eval with grad"`` or ``"no_grad"``.
    """

    batch: Batch
    mode: str = "train"

    def run(self, runner: Runner) -> None:
        """Call the model, and in most modes the criterion."""
        runner.model.train(not self.mode.startswith("eval"))
        with torch.set_grad_enabled(self.mode in ("train", "loss", "eval with grad")):
            runner.losses(self.batch, () if self.mode == "train" else (0,), 1)
        runner.model.train()


DROPS = ("grad = None", "zero_grad", "zero_grad(set_to_none=False)", "grad.zero_()", "optimizer.zero_grad")


@dataclass(frozen=True, repr=False)
class Drop(Brief):
    """The gradients so far are dropped.

    Attributes:
        how: one of `DROPS`.
    """

    how: str

    def run(self, runner: Runner) -> None:
        """Drop them."""
        if self.how == "zero_grad":
            runner.model.zero_grad()
        elif self.how == "zero_grad(set_to_none=False)":
            runner.model.zero_grad(set_to_none=False)
        elif self.how == "optimizer.zero_grad":
            torch.optim.SGD(runner.parameters(), lr=0.1).zero_grad()
        for p in runner.parameters():
            if self.how == "grad = None":
                p.grad = None
            elif self.how == "grad.zero_()" and p.grad is not None:
                p.grad.zero_()
        runner.dropped()


Action: TypeAlias = Backward | Differentiate | Forward | Drop


@dataclass(frozen=True, repr=False)
class Loop(Brief):
    """Rounds of actions, each with a step of the optimizer at its end."""

    rounds: tuple[tuple[Action, ...], ...]

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of all passes."""
        for action in (action for actions in self.rounds for action in actions):
            if isinstance(action, Backward):
                yield from action.batches
            elif not isinstance(action, Drop):
                yield action.batch


@st.composite
def loops(draw: st.DrawFn, *, plain: bool) -> Loop:
    """Draw a loop.

    Args:
        plain: one backward pass a round and no more.
    """
    sizes = (draw(_SAMPLES), draw(_TOKENS)) if draw(_EQUAL) else None
    rounds = []
    for _ in range(draw(_ROUNDS if plain else _LONG_ROUNDS)):
        actions = [] if plain else [_action(draw, sizes) for _ in range(draw(_ACTIONS))]
        rounds.append((*actions, _backward(draw, sizes, plain)))
    return Loop(tuple(rounds))


# Strategies are made once: that takes longer than to draw from them.
_ROUNDS, _LONG_ROUNDS, _ACTIONS = st.integers(1, 4), st.integers(1, 2), st.integers(0, 2)
_SAMPLES, _TOKENS, _SEEDS = st.sampled_from((3, 2, 4, 1, 5, 6)), st.sampled_from((2, 3, 1)), st.integers(0, 50)
_EQUAL, _REGULAR = st.booleans(), st.booleans()
_HEADS = st.sampled_from(((0,), (0, 1), (1,)))
_KINDS = st.sampled_from((Backward, Drop, Forward, Differentiate, Backward))
_MODES = st.sampled_from(("train", "loss", "eval", "eval with grad", "no_grad"))
_DROPS = st.sampled_from(DROPS)
_FACTORS = st.sampled_from((1.0, 0.5, 0.1, 3.0))
_FACTORS_BY = st.sampled_from(("product", "quotient", "gradient"))
_ONCE_OR_TWICE = st.sampled_from((1, 1, 1, 2))
_DIFFERENTIATED = st.sampled_from(("", "", "", "loss", "sum"))


def _batch(draw: st.DrawFn, sizes: tuple[int, int] | None) -> Batch:
    """Draw a batch of these samples and tokens, or of any."""
    samples, tokens = sizes or (draw(_SAMPLES), draw(_TOKENS))
    return Batch(samples, tokens, draw(_SEEDS), draw(_REGULAR))


def _action(draw: st.DrawFn, sizes: tuple[int, int] | None) -> Action:
    kind = draw(_KINDS)
    if kind is Drop:
        return Drop(draw(_DROPS))
    if kind is Forward:
        return Forward(_batch(draw, sizes), draw(_MODES))
    if kind is Differentiate:
        return Differentiate(_batch(draw, sizes), rarely(draw, 3))
    return _backward(draw, sizes, plain=False)


def _backward(draw: st.DrawFn, sizes: tuple[int, int] | None, plain: bool) -> Backward:
    first = _batch(draw, sizes)
    if plain:
        return Backward((first,), heads=draw(_HEADS))
    batches = (first, _batch(draw, sizes)) if rarely(draw, 5) else (first,)
    factor = draw(_FACTORS)
    return Backward(
        batches,
        heads=draw(_HEADS),
        targets=draw(_ONCE_OR_TWICE),
        weighted=rarely(draw, 3),
        factor=factor,
        by="product" if factor == 1.0 else draw(_FACTORS_BY),
        times=2 if rarely(draw, 7) else 1,
        before=draw(_DIFFERENTIATED),
        after=draw(_DIFFERENTIATED),
        kept=rarely(draw, 5),
    )
