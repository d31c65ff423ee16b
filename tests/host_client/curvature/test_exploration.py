"""Whatever a model and its training loop do, F is right, or a documented error is raised."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import Phase, assume, given, seed, settings

from host_client.curvature.rules.products import Product
from tests import profiles
from tests.host_client.curvature.exploration import loops, losses, programs
from tests.host_client.curvature.exploration.loops import Backward, Loop
from tests.host_client.curvature.exploration.losses import Loss
from tests.host_client.curvature.exploration.operations import OPERATIONS
from tests.host_client.curvature.exploration.programs import Batch, Head, Program, Step
from tests.host_client.curvature.exploration.tally import Tally
from tests.host_client.curvature.exploration.trials import Trial, trials

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's about what is unusual here

TALLY = Tally()
"""Of all trials in this process."""


@pytest.mark.hypothesis
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation(operation: str, record_property: Callable[[str, object], None]) -> None:
    """The simplest trial with it, and a random one."""
    _explore(record_property, operation, profiles.examples(2, exploring=105), focus=operation)
    assert TALLY.operations[operation]


@pytest.mark.hypothesis
@pytest.mark.parametrize("part", range(4))
def test_training_loops(part: int, record_property: Callable[[str, object], None]) -> None:
    """With short models, as the loops matter."""
    _explore(record_property, f"loops {part}", profiles.examples(15, exploring=700), longest=1)


def test_few_trials_are_refused() -> None:
    """Of all above."""
    if TALLY.total() < 300:
        pytest.skip("too few trials in this process")
    assert TALLY.refused() < 0.15 * TALLY.total(), TALLY.counts


def test_many_functions_are_tried() -> None:
    functions = {function for operation in OPERATIONS.values() for function in operation.functions}
    assert len(functions) >= 60


@settings(max_examples=20)
@given(trials())
def test_a_trial_prints_as_the_call_that_makes_it(trial: Trial) -> None:
    names = {name: value for module in (programs, losses, loops) for name, value in vars(module).items()}
    assert eval(repr(trial), names | {"Trial": Trial}) == trial


HEAD = Head(after=2, width=3, axis=1)
MLP = Program(
    ("b", 3), (Step("linear", {"axis": 1, "width": 2, "bias": True}), Step("activation", {"function": "tanh"})), (HEAD,)
)
LOSS = Loss("cross_entropy", width=3)
ONCE = Loop(((Backward((Batch(4),)),),))
LINEAR = Trial(MLP, LOSS, ONCE)


def _model(name: str, layout: tuple[str | int, ...] = ("b", 3), **choices: Any) -> Program:
    return Program(layout, (Step("linear", {"axis": 1, "width": 3, "bias": True}), Step(name, choices)), (HEAD,))


KNOWN = {
    "two passes with a factor above one": Trial(
        MLP, LOSS, Loop(((Backward((Batch(4),), factor=3.0), Backward((Batch(4, seed=1),))),))
    ),
    "second derivatives across the samples": Trial(_model("second_derivative", axis=0), LOSS, ONCE),
    "random numbers in a checkpoint, behind samples that mix": Trial(
        Program(
            ("b", 4, 2, 2),
            (
                Step("scale", {"axis": 0}),
                Step("pool2d", {"axes": (0, 1), "largest": True}),
                Step("dropout", wrap="checkpoint"),
            ),
            (Head(after=3, width=1, axis=3, form="last", bias=False),),
        ),
        Loss("binary_cross_entropy_with_logits", width=1),
        ONCE,
    ),
}
"""Faults that have been found and have no test in `kinds`."""


@pytest.mark.parametrize("known", KNOWN)
def test_known_faults(known: str) -> None:
    outcome = KNOWN[known].outcome()
    assert outcome.kind == "right", outcome


@contextmanager
def broken_rule() -> Iterator[None]:
    """Make the Jacobian rows of matrix products too large by a tenth."""
    factors = Product.factors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Product, "factors", lambda *args: 1.1 * factors(*args))
        yield


def test_a_broken_rule_is_found_by_random_trials() -> None:
    with broken_rule(), pytest.raises(AssertionError, match="wrong: value"):
        _explore(lambda *_: None, "broken", 20, focus="linear", plain=True, longest=1, tally=Tally(), check="never")


def test_a_broken_rule_is_found_by_a_capture_that_checks_itself() -> None:
    assert LINEAR.outcome(check="always").kind == "right"
    with broken_rule():
        assert LINEAR.outcome(check="always").reason.startswith("CurvatureMismatch")


def _explore(
    record_property: Callable[[str, Any], None],
    name: str,
    examples: int,
    *,
    tally: Tally = TALLY,
    check: str = "first",
    **options: Any,
) -> None:
    """Try random trials: the same ones of this name every time, or, to explore, others."""
    own = Tally()

    def compare(trial: Trial) -> None:
        outcome = trial.outcome(check=check)
        own.add(trial, outcome)
        tally.add(trial, outcome)
        assume(outcome.kind != "undefined")
        assert outcome.acceptable, f"{outcome.kind}: {outcome.reason}: {outcome.detail}"

    exploring = not settings().derandomize
    # To shrink takes up to minutes, and the first of a few fixed examples is the simplest already.
    phases = (Phase.generate, Phase.shrink) if exploring else (Phase.generate,)
    test = settings(max_examples=examples, phases=phases)(given(trials(**options))(compare))
    if not exploring:
        test = seed(zlib.crc32(name.encode()))(test)
    try:
        test()
    finally:
        record_property("trials", dict(own.counts))
