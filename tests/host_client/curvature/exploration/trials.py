"""One trial: a random model in a random loop, with a capture, without one, and with the dense reference."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import host_client
from host_client.curvature import Capture, errors
from tests.host_client.curvature.exploration.brief import Brief, rarely
from tests.host_client.curvature.exploration.loops import Loop, loops
from tests.host_client.curvature.exploration.losses import Loss, losses
from tests.host_client.curvature.exploration.programs import Batch, Network, Program, programs
from tests.host_client.curvature.oracle import jacobian

FLOOR = 1e-6
"""F whose norm is smaller than this are compared absolutely: they ought to vanish, but for rounding."""


@dataclass(frozen=True)
class Outcome:
    """The result of a trial.

    Attributes:
        kind: ``"right"``; ``"refused"`` with a documented error; ``"wrong"`` for another F; ``"disturbed"`` where
            something else differs from a run without a capture; ``"crashed"`` with any other error; or
            ``"undefined"`` where the reference itself is not finite, or torch raises an error without a capture.
        reason: the class of the error, or what differs.
        detail: the message, or by how much.
    """

    kind: str
    reason: str = ""
    detail: str = ""

    @property
    def acceptable(self) -> bool:
        """True if no fault of the capture shows."""
        return self.kind in ("right", "refused", "undefined")


@dataclass(frozen=True, repr=False)
class Trial(Brief):
    """A model, a criterion and a loop.

    Attributes:
        program: the model.
        loss: the criterion.
        loop: the training loop.
        kind: of the curvature, ``"exact"`` or ``"empirical"``.
    """

    program: Program
    loss: Loss
    loop: Loop
    kind: str = "exact"

    def outcome(self, **options: Any) -> Outcome:
        """Run the loop and compare; `options` are further ones of the `Capture`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fallback's, and torch's about what is unusual here
            if self.kind == "empirical" and any(head.form == "flat" for head in self.program.heads):
                return Outcome("undefined", "samples", "of joined dimensions are those of the first")
            expected, plain = Dense(self), Run(self, watch=True)
            try:
                expected.run()
                plain.run()
            except Exception as error:  # noqa: BLE001 - torch itself cannot run it, with or without a capture
                return Outcome("undefined", type(error).__name__, str(error))
            if not all(f.isfinite().all() for f in expected.curvatures):
                return Outcome("undefined")
            if expected.doubt > self.program.precision():
                return Outcome("undefined", "rounding", "the Hessian of a criterion that is sure has lost its digits")
            captured = Captured(self, options)
            error: Exception | None = None
            try:
                captured.run()
            except Exception as raised:  # noqa: BLE001 - whichever it is, it is classified
                error = raised
        difference = _difference(plain, captured, complete=error is None)
        if error is not None and not is_refusal(error):
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = f"{Path(where.filename).name}:{where.lineno}"
            return Outcome("crashed", f"{type(error).__name__} at {line}", str(error))
        if difference:
            return Outcome("disturbed", *difference)
        for number, (found, f) in enumerate(zip(captured.curvatures, expected.curvatures, strict=False)):
            if found.shape != f.shape:
                return Outcome("wrong", "shape", f"{tuple(found.shape)} for {tuple(f.shape)}")
            off = float((found - f).norm() / max(float(f.norm()), FLOOR))
            if not off <= self.program.precision():
                return Outcome("wrong", "value", f"F of round {number} is off by {off:.1e}")
        return Outcome("right") if error is None else Outcome("refused", type(error).__name__, str(error))


def is_refusal(error: Exception) -> bool:
    """Return whether an error is one of those that the capture documents."""
    # A mismatch is no refusal: it shows a rule that is wrong.
    if isinstance(error, (errors.UnsupportedLayer, errors.UnsupportedCriterion, errors.CurvatureTooLarge)):
        return True
    raised = traceback.extract_tb(error.__traceback__)[-1]  # torch's own errors come from calls
    own = Path(host_client.__file__).parent in Path(raised.filename).parents
    return type(error) is RuntimeError and own and (raised.line or "").startswith("raise ")


class Run:
    """A trial's loop without a capture.

    Attributes:
        values: of all losses.
        gradients: the accumulated ones at the end of each round.
        curvatures: F at the end of each round, where this run knows it.
    """

    def __init__(self, trial: Trial, *, watch: bool = False) -> None:
        self.trial = trial
        torch.manual_seed(0)
        self.model = Network(trial.program, next(trial.loop.batches()), watch=watch)
        self.criterion = trial.loss.criterion()
        self.kept: list[Tensor] = []
        self.values: list[Tensor] = []
        self.gradients: list[list[Tensor | None]] = []
        self.curvatures: list[Tensor] = []

    def run(self) -> None:
        """Run the loop."""
        torch.manual_seed(1)
        for actions in self.trial.loop.rounds:
            for action in actions:
                action.run(self)
            self.finish_round()
            gradients = [None if p.grad is None else p.grad.clone() for p in self.parameters()]
            self.gradients.append(gradients)
            with torch.no_grad():
                for p, gradient in zip(self.parameters(), gradients, strict=True):
                    if gradient is not None:
                        p -= 0.1 * gradient / (1 + gradient.norm())
                    p.grad = None

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def losses(self, batch: Batch, heads: Sequence[int], targets: int) -> list[Tensor]:
        """Call the model and the criterion."""
        outputs = self.outputs(batch)
        called = []
        for head in sorted({head % len(outputs) for head in heads}):
            for number in range(targets):
                y = self.trial.loss.targets(outputs[head], batch.generator(900 + 10 * number + head))
                called.append(self.loss(outputs[head], y))
        return called

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Call the model."""
        return self.model.outputs(batch)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Call the criterion."""
        loss = self.trial.loss.call(self.criterion, z, y)
        self.values.append(loss.detach())
        return loss

    def counts(self, losses: Sequence[Tensor], factor: float) -> None:
        """Pass: only the reference counts."""

    def dropped(self) -> None:
        """Pass: only the reference counts."""

    def finish_round(self) -> None:
        """Pass: no curvature is known."""


class Captured(Run):
    """The same with a capture."""

    def __init__(self, trial: Trial, options: dict[str, Any]) -> None:
        super().__init__(trial, watch=True)
        self._options = options
        self._capture: Capture | None = None

    def run(self) -> None:
        """Run the loop."""
        self._capture = Capture(self.model, self.criterion, curvature=self.trial.kind, **self._options)  # type: ignore[arg-type]
        super().run()

    def finish_round(self) -> None:
        """Ask for the curvature, and start the next round."""
        assert self._capture is not None
        a = self._capture.operator_of_gradients().dense()
        self._capture.forget_gradients()
        self.curvatures.append(a.T @ a)


class ConstantStatistics(TorchFunctionMode):
    """Batch norms in training mode have the batch's statistics, as constants."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Normalise by hand; all else is torch's."""
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        given = inspect.signature(F.batch_norm).bind(*args, **(kwargs or {}))
        given.apply_defaults()
        x, weight, bias, eps = (given.arguments[name] for name in ("input", "weight", "bias", "eps"))
        if not given.arguments["training"] or len(x) == 1:
            return func(*args, **(kwargs or {}))
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        mean, variance = x.detach().mean(over).view(shape), x.detach().var(over, unbiased=False).view(shape)
        y = (x - mean) * (variance + eps).rsqrt()
        if weight is not None:
            y = y * weight.view(shape) + bias.view(shape)
        # In torch's memory format, in the order of which a dropout behind it draws.
        return torch.empty_like(F.batch_norm(x, None, None, training=True)).copy_(y)


class Dense(Run):
    """The same with F from a dense Jacobian and a dense Hessian of each loss that counts, by plain autograd.

    Attributes:
        doubt: how far its F may be off relatively, where entries of a Hessian are differences of near equals (p − p²).
    """

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.doubt = 0.0
        self._curvature_of: dict[int, tuple[Tensor, Tensor]] = {}
        self._counted: list[Tensor] = []
        self._constant: dict[int, Tensor] = {}

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Call the model, and once more for the Jacobian if that has the statistics of batch norms for constants."""
        if not any(step.operation == "batch_norm" for step in self.trial.program.steps):
            return super().outputs(batch)
        with torch.random.fork_rng(), ConstantStatistics():
            constant = self.model.outputs(batch)
        outputs = super().outputs(batch)
        for z, other in zip(outputs, constant, strict=True):
            torch.testing.assert_close(other, z, msg="the reference is of another function")
        self._constant = {id(z): other for z, other in zip(outputs, constant, strict=True)}
        return outputs

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Call the criterion; as backward passes free the graph, the curvature is computed at once."""
        loss = super().loss(z, y)
        if torch.is_grad_enabled() and self.model.training:
            self._curvature_of[id(loss)] = loss, self._curvature(z, y)  # with the loss, whose id might be another's
        return loss

    def counts(self, losses: Sequence[Tensor], factor: float) -> None:
        """Add the curvatures of a backward pass."""
        self._counted += [factor * self._curvature_of[id(loss)][1] for loss in losses]

    def dropped(self) -> None:
        """Start over."""
        self._counted.clear()

    def finish_round(self) -> None:
        """Add up the curvatures."""
        self.curvatures.append(torch.stack(self._counted).sum(0))
        self._counted.clear()
        self._curvature_of.clear()

    def _curvature(self, z: Tensor, y: Tensor) -> Tensor:
        j = jacobian(self._constant.get(id(z), z), self.parameters())
        loss, constant = self.trial.loss, z.detach()
        if self.trial.kind == "exact":
            h = torch.autograd.functional.hessian(lambda z: loss.value(z, y), constant)
            f: Tensor = j.T @ h.reshape(z.numel(), z.numel()) @ j
            rounding = torch.finfo(j.dtype).eps * float(j.norm()) ** 2 / len(z)
            self.doubt = max(self.doubt, rounding / max(float(f.norm()), FLOOR))
            return f
        constant.requires_grad_()
        (of_z,) = torch.autograd.grad(loss.value(constant, y, "sum"), constant)
        samples = len(z)
        g = torch.einsum("bz,bzn->bn", of_z.reshape(samples, -1), j.reshape(samples, -1, j.shape[1]))
        return g.T @ g / loss.divisor(constant.detach(), y)


def _difference(plain: Run, captured: Run, *, complete: bool) -> tuple[str, str] | None:
    """Return what the capture has changed, and by how much; only the rounds so far are compared if it has refused."""
    for number, (value, expected) in enumerate(zip(captured.values, plain.values, strict=complete)):
        if not torch.allclose(value, expected, rtol=1e-9, atol=1e-12):
            return "losses", f"loss {number} is {value}, not {expected}"
    for number, (found, wanted) in enumerate(zip(captured.gradients, plain.gradients, strict=complete)):
        if not all(_same(one, other) for one, other in zip(found, wanted, strict=True)):
            return "gradients", f"of round {number}"
    if not complete:
        return None
    if captured.model.counts != plain.model.counts:
        watches = plain.trial.program.watches
        return "calls of the user's hooks", f"{captured.model.counts} in place of {plain.model.counts} for {watches}"
    retained = [[h.grad for h in run.model.retained] for run in (captured, plain)]
    if not all(_same(one, other) for one, other in zip(*retained, strict=True)):
        return "retained gradients", ""
    buffers = [list(run.model.buffers()) for run in (captured, plain)]
    if not all(_same(one, other) for one, other in zip(*buffers, strict=True)):
        return "buffers", ""
    return None


def _same(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    try:
        return bool(found.shape == expected.shape and ((found - expected).abs() <= 1e-10 + 1e-7 * expected.abs()).all())
    except RuntimeError:  # a dead tensor of vmap's, left behind by a pass of a capture
        return False


@st.composite
def trials(draw: st.DrawFn, *, focus: str | None = None, longest: int = 3, plain: bool = False) -> Trial:
    """Draw a trial.

    Args:
        focus: an operation that is in the model.
        longest: number of further steps of the model at most.
        plain: the loop does one backward pass a round and no more.
    """
    loss = draw(losses())
    loop = draw(loops(plain=plain))
    batches = list(loop.batches())
    program = draw(programs(batches, focus=focus, longest=longest, forms=loss.forms, widths=(loss.width,)))
    empirical = rarely(draw, 4) and _samples_lead(program, batches)
    return Trial(program, loss, loop, "empirical" if empirical else "exact")


def _samples_lead(program: Program, batches: Sequence[Batch]) -> bool:
    """Return whether the first dimension of z is that of the samples, so that a sample's own loss is defined."""
    if program.layout[0] != "b":
        return False
    before = replace(program, heads=tuple(replace(head, form="last", outside=False) for head in program.heads))
    with torch.no_grad():  # also before dimensions are joined, of which the first is that of the samples
        outputs = [
            (z, batch)
            for one in (program, before)
            for batch in batches
            for z in Network(one, batches[0]).outputs(batch)
        ]
    return all(z.dim() > 0 and len(z) == batch.samples for z, batch in outputs)
