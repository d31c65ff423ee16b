"""Delay: MNIST with TNGD at different analog times and delays, the paper's Fig. 4, and whether they act as momentum.

Cells that keep their state x follow ẋ = −(F + λI) x + ∇ℓ for t, from one step to the next. What the batch does not see
decays as e^{−λt}, as with SPRING's momentum (arXiv 2401.10190) μ = e^{−λt}. For the rest one step of the implicit Euler
method, (F + (λ + 1/t) I) x′ = ∇ℓ + x/t, approximates the flow: that is SPRING with λ′ = λ + 1/t and μ′ = 1/(1 + λt).
Both are run with exact solutions, and heavy-ball momentum too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from host_client.optimizers import NGD
from host_client.solvers import solve_woodbury
from spu_lab.studies.paired import Paired, compare
from spu_lab.studies.study import Results, Study, describe_differences, find_differences
from spu_lab.studies.sweeps import Arm, Panel
from spu_lab.studies.verdicts import Verdict
from spu_lab.training.loop import Run

TIMES = (5.0, 10.0, 20.0, 50.0)
"""Analog times t, in τ."""

SHORT, LONG = TIMES[0], TIMES[-1]

DELAYS = (0.2, 1.0, 5.0)
"""Delays t_d at t = 5 τ, in τ; the paper has the first two."""

MATCHED = (50.0, 5.0)
"""Analog times that SPRING is matched with."""

DAMPING = 0.01

FIRST_EPOCH = 157
"""Iterations of an epoch: 10,000 images, b = 64."""

CLOSE = 0.1
"""Two mean training losses that differ by less, relative to the second, are said to be close."""

LEVEL = 0.05
"""Of significance."""

DIGITAL = {"optimizer": "ngd-woodbury"}

NGD_EXACT = Arm("exact NGD", settings=DIGITAL, device=None)


def make_spring(mu: float, name: str, *arguments: Any, session: None = None, **options: Any) -> NGD:
    """Make, in the place of `make_optimizer`, digital natural gradient descent with SPRING."""
    return NGD(*arguments, solver=solve_woodbury, spring=mu, **options)


def at_time(t: float, start: str) -> Arm:
    """Return a device read at t, without delay."""
    return Arm(f"t = {t:g} τ, {start}", t, {"analog_time": t, "start": start})


def delayed(t_d: float, start: str) -> Arm:
    """Return a device read at the shortest t, with a delay."""
    return Arm(f"t_d = {t_d:g} τ, {start}", t_d, {"analog_time": SHORT, "delay": t_d, "start": start})


def spring(t: float) -> Arm:
    """Return exact solutions with SPRING that forgets what a batch does not see as a keeping device does in t."""
    mu = round(math.exp(-DAMPING * t), 3)
    return Arm(f"SPRING, μ = {mu:g}", mu, DIGITAL, None, partial(make_spring, mu))


def implicit(t: float) -> Arm:
    """Return SPRING that is an implicit Euler step of length t of a keeping device."""
    mu, damping = round(1.0 / (1.0 + DAMPING * t), 3), DAMPING + 1.0 / t
    label = f"SPRING, μ = {mu:g}, λ′ = {damping:g}"
    return Arm(label, mu, {**DIGITAL, "damping": damping}, None, partial(make_spring, mu))


HEAVY_BALL = Arm("momentum, β = 0.5", 0.5, {**DIGITAL, "momentum": 0.5}, None)
LARGER = Arm("exact NGD, η = 0.03", 0.0, {**DIGITAL, "lr": 0.03}, None)
"""A larger step in the place of momentum."""

TIME, DELAY, MOMENTUM = "analog time t, τ", "delay t_d at t = 5 τ, τ", "μ of SPRING or β of momentum; 0: a larger η"

PANELS = [
    Panel(f"{TIME} (keep)", NGD_EXACT, [at_time(t, "keep") for t in TIMES]),
    Panel(f"{TIME} (drive)", NGD_EXACT, [at_time(t, "drive") for t in TIMES]),
    Panel(f"{DELAY} (keep)", at_time(SHORT, "keep"), [delayed(t_d, "keep") for t_d in DELAYS]),
    Panel(f"{DELAY} (drive)", at_time(SHORT, "drive"), [delayed(t_d, "drive") for t_d in DELAYS[1:]]),
    Panel(MOMENTUM, NGD_EXACT, [*map(spring, MATCHED), *map(implicit, MATCHED), HEAVY_BALL, LARGER]),
]


def judge(panels: Sequence[Panel], results: Results) -> list[Verdict]:
    """Return the verdicts on the paper's claims, for the panels that there are."""
    verdicts: list[Verdict] = []
    for panel in panels:
        if panel.varied.startswith(TIME):
            long, short = _judge_long(panel, results), _judge_short(panel, results)
            verdicts += [long.of_paper("abstract: equivalence"), short.of_paper("Fig. 4a")]
        elif panel.varied.startswith(DELAY):
            verdicts.append(_judge_delay(panel, results).of_paper("Fig. 4b"))
    if len(panels) == len(PANELS):
        verdicts += [
            _judge_best(panels, results).of_paper("Fig. 4b"),
            _judge_against_momentum(panels, results),
        ]
        verdicts += [*_judge_mechanism(panels, results), *_judge_likeness(results)]
    return verdicts


def _judge_long(panel: Panel, results: Results) -> Verdict:
    """Compare the curves of the longest analog time and of exact natural gradient descent."""
    claim = f"At {LONG:g} τ TNGD is close to exact NGD, within {CLOSE:.0%} of the mean training loss ({_start(panel)})"
    return _judge_closeness(claim, results, panel.arms[-1].label, panel.reference.label)


def _judge_closeness(claim: str, results: Results, label: str, reference: str) -> Verdict:
    runs, references = results[label].finished, results[reference].finished
    paired = _compare(results, label, reference, mean_loss)
    if paired is None:
        return Verdict(claim, "Runs diverged.", holds=False)
    mine, theirs = (fmean(map(mean_loss, those)) for those in (runs, references))
    ends = results[label].against(results[reference])
    end = f" The test losses at the end differ by {_in_words(ends)}." if ends is not None else ""
    outcome = f"It is {mine:.3g} with {label} and {theirs:.3g} with {reference}: {_in_words(paired)}.{end}"
    return Verdict(claim, outcome, abs(paired.mean) <= CLOSE * theirs)


def _judge_short(panel: Panel, results: Results) -> Verdict:
    claim = f"Short analog times are slower: {SHORT:g} τ than exact NGD, in the first epoch ({_start(panel)})"
    paired = _compare(results, panel.arms[0].label, panel.reference.label, early_loss)
    ends = results[panel.arms[0].label].against(results[panel.reference.label])
    if paired is None or ends is None:
        return Verdict(claim, "Runs diverged.", holds=None)
    outcome = f"Its mean training loss differs by {_in_words(paired)}; at the end the test loss by {_in_words(ends)}."
    return Verdict(claim, outcome, paired.mean > 0.0 and paired.p < LEVEL)


def _judge_delay(panel: Panel, results: Results) -> Verdict:
    """Look for delays with which the test loss ends lower than without."""
    better = [label for label, test in find_differences(panel, results).items() if test.mean < 0.0]
    claim = f"A delay helps at t = {SHORT:g} τ: the test loss ends lower ({_start(panel)})"
    return Verdict(claim, _capitalised(describe_differences(panel, results)), bool(better))


def _judge_best(panels: Sequence[Panel], results: Results) -> Verdict:
    """Look for devices whose test loss ends below that of exact natural gradient descent."""
    labels = list({arm.label: None for panel in panels[:4] for arm in (panel.reference, *panel.arms)})
    labels.remove(NGD_EXACT.label)
    tests = {label: results[label].against(results[NGD_EXACT.label]) for label in labels}
    better = {label: t for label, t in tests.items() if t is not None and t.mean < 0 and t.p < LEVEL / len(tests)}
    named = ", ".join(f"{label} ({_in_words(test)})" for label, test in better.items()) or "none"
    claim = "Some settings of the device beat exact NGD: their test loss ends lower"
    return Verdict(claim, f"{len(better)} of {len(tests)} do, at the same η: {named}.", bool(better))


def _judge_against_momentum(panels: Sequence[Panel], results: Results) -> Verdict:
    """Compare the best device with the best explicit momentum, or larger step."""
    devices = [arm.label for panel in panels[:4] for arm in panel.arms if results[arm.label].finished]
    digital = [arm.label for arm in panels[4].arms if results[arm.label].finished]
    claim = "The best of them also beats exact NGD with explicit momentum or a larger η"
    if not devices or not digital:
        return Verdict(claim, "Runs diverged.", holds=None)
    mine, theirs = (min(labels, key=lambda label: _end(results, label)) for labels in (devices, digital))
    paired = results[mine].against(results[theirs])
    outcome = f"{mine} ends at a test loss of {_end(results, mine):.3g}, {theirs} at {_end(results, theirs):.3g}"
    if paired is None:
        return Verdict(claim, f"{outcome}.", holds=None)
    return Verdict(
        claim, f"{outcome}; by seed it differs by {_in_words(paired)}.", paired.mean < 0.0 and paired.p < LEVEL
    )


def _judge_mechanism(panels: Sequence[Panel], results: Results) -> Iterator[Verdict]:
    """Compare delays with momentum, with cells that forget, and with as much time before a reading."""
    _, _, keep, drive, _ = panels
    longest, forgetting = keep.arms[-1].label, drive.arms[-1].label
    momentum, later = spring(SHORT).label, at_time(SHORT + DELAYS[-1], "keep").label
    by_delay = results[longest].against(results[keep.reference.label])
    by_forgetting = results[forgetting].against(results[drive.reference.label])
    by_momentum = results[momentum].against(results[NGD_EXACT.label])
    claim = "The delay acts as momentum: it moves the test loss as SPRING does, and not where the cells forget (drive)"
    if by_delay is None or by_forgetting is None or by_momentum is None:
        yield Verdict(claim, "Runs diverged.", holds=None)
    else:
        outcome = (
            f"{longest} moves it by {_in_words(by_delay)}, {momentum} by {_in_words(by_momentum)}, {forgetting} by "
            f"{_in_words(by_forgetting)}."
        )
        alike = by_delay.p < LEVEL and by_momentum.p < LEVEL and by_delay.mean * by_momentum.mean > 0.0
        # Rounding makes differences that are small, but may all have one sign.
        forgot = not by_forgetting.p < LEVEL or abs(by_forgetting.mean) < 0.1 * abs(by_delay.mean)
        yield Verdict(claim, outcome, alike and forgot)
    claim = f"A delay does more than as much time before the reading: {longest} ends lower than {later}"
    paired = results[longest].against(results[later])
    if paired is None:
        yield Verdict(claim, "Runs diverged.", holds=None)
    else:
        yield Verdict(claim, f"The test loss differs by {_in_words(paired)}.", paired.mean < 0.0 and paired.p < LEVEL)


def _judge_likeness(results: Results) -> Iterator[Verdict]:
    """Compare cells that keep their state with SPRING."""
    for t in MATCHED:
        for arm, of in (spring(t), "μ = e^{−λt}"), (implicit(t), "λ′ = λ + 1/t and μ′ = 1/(1 + λt)"):
            claim = f"Keeping cells at t = {t:g} τ are SPRING with {of}, within {CLOSE:.0%} of the mean training loss"
            yield _judge_closeness(claim, results, at_time(t, "keep").label, arm.label)


def mean_loss(run: Run) -> float:
    """Return the mean training loss of all batches."""
    return fmean(step.loss for step in run.steps)


def early_loss(run: Run) -> float:
    """Return that of the first epoch."""
    return fmean(step.loss for step in run.steps[:FIRST_EPOCH])


def _compare(results: Results, label: str, reference: str, of: Callable[[Run], float]) -> Paired | None:
    both = zip(results[label].runs, results[reference].runs, strict=True)
    return compare([of(mine) - of(theirs) for mine, theirs in both if mine is not None and theirs is not None])


def _end(results: Results, label: str) -> float:
    return fmean(results[label].finals("loss"))


def _start(panel: Panel) -> str:
    return panel.varied.rpartition("(")[2].rstrip(")")


def _in_words(test: Paired) -> str:
    return f"{test.mean:+.2g} (95 %: {test.low:+.2g} to {test.high:+.2g}, p = {test.p:.1g})"


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


STUDY = Study(
    name="delay",
    title="Analog time and delay: MNIST with TNGD and exact NGD",
    caption="3 epochs (the paper: 10). η = 0.01, λ = 0.01, b = 64, no noise. Keep: a solve starts from the cells' "
    "state, as in the paper. Drive: from the gradient. Momentum: exact solutions, SPRING (μ) and heavy ball (β).",
    panels=PANELS,
    common={"epochs": 3, "damping": DAMPING},
    seeds=(0, 1, 2, 3, 4),
    judge=judge,
)

run = STUDY.reproduce
