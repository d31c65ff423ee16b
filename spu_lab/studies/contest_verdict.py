"""Verdicts on TNGD and Adam: as the paper has them, and tuned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from spu_lab.studies.contest import CLOCKS, TARGETS, Contest, Entrant, count
from spu_lab.studies.paper_claims import TWICE
from spu_lab.studies.verdicts import Verdict
from spu_lab.training.report import PAPER_WINDOW, moving_average

EARLY = (20, 50, 100)
"""Steps at which the training losses are compared."""

END, NEAR = 0.94, 0.01
"""Test accuracy of the paper's plot at the end, and how near is near."""


def judge_paper(adam: Entrant, tngd: Entrant) -> list[Verdict]:
    """Return the claims of Fig. 3."""
    total = len(tngd.runs[0].losses)
    losses = {step: (_loss(tngd, step), _loss(adam, step)) for step in EARLY if step <= total}
    pairs = "; ".join(f"{ours:.3f} and {theirs:.3f} after {step} steps" for step, (ours, theirs) in losses.items())
    first = tngd.runs[0].evaluations[0].step
    early = [fmean(run.evaluations[0].accuracy for run in entrant.runs) for entrant in (tngd, adam)]
    ends = [fmean(run.accuracy for run in entrant.runs) for entrant in (tngd, adam)]
    return [
        Verdict(
            "TNGD leads early by iterations: the moving average of its training loss is below Adam's",
            f"TNGD and Adam: {pairs}.",
            all(ours < theirs for ours, theirs in losses.values()) if losses else None,
        ).of_paper("Fig. 3: start"),
        Verdict(
            f"TNGD leads in test accuracy after {first} steps",
            f"TNGD {early[0]:.2%}, Adam {early[1]:.2%}.",
            early[0] > early[1],
        ).of_paper("Fig. 3: start"),
        Verdict(
            f"Both end near {END:.0%} test accuracy, within {NEAR:.0%}",
            f"TNGD {ends[0]:.2%}, Adam {ends[1]:.2%} after {total} steps.",
            all(abs(end - END) <= NEAR for end in ends),
        ).of_paper("Fig. 3: end"),
        _judge_cost("the paper's arrays", tngd.cost.seconds, tngd.cost.device, adam.cost.host),
        _judge_cost("arrays of factors", tngd.cost.seconds_factors, tngd.cost.device_factors, adam.cost.host),
    ]


def _loss(entrant: Entrant, step: int) -> float:
    return fmean(float(moving_average(np.array(run.losses), PAPER_WINDOW)[step - 1]) for run in entrant.runs)


def _judge_cost(arrays: str, tngd: float, device: float, adam: float) -> Verdict:
    low, high = TWICE
    return Verdict(
        f"An iteration of TNGD takes about 2 × Adam's, modelled with {arrays}",
        f"{1e3 * tngd:.1f} ms, {1e3 * device:.1f} of them on the device, and {1e3 * adam:.1f} ms: {tngd / adam:.1f} ×.",
        low <= tngd / adam <= high,
    ).of_paper("Fig. 3: runtime")


def judge_steps(contest: Contest, best: Entrant, adam: Entrant) -> list[Verdict]:
    """Return how the best variant of TNGD compares with Adam in iterations."""
    verdicts = []
    for target in TARGETS:
        ours, theirs = best.steps_to(target), adam.steps_to(target)
        half = target < TARGETS[-1]
        needed = min(theirs, contest.steps) / 2 if half else min(theirs, contest.steps + 1)
        verdicts.append(
            Verdict(
                f"{contest.title}: {best.label} reaches {target:.0%} in "
                + ("at most half of tuned Adam's iterations" if half else "fewer iterations than tuned Adam"),
                f"{count(ours, contest.steps)}, Adam {count(theirs, contest.steps)}; medians over seeds.",
                None if ours == theirs == math.inf else (ours <= needed if half else ours < needed),
            )
        )
    return verdicts


def judge_time(contest: Contest, best: Entrant, adam: Entrant) -> list[Verdict]:
    """Return how a variant of TNGD compares with Adam in modelled time, with both kinds of arrays."""
    verdicts = []
    for arrays, seconds in (
        ("the paper's arrays", best.cost.seconds),
        ("arrays of factors", best.cost.seconds_factors),
    ):
        pairs = [(best.steps_to(t) * seconds, adam.steps_to(t) * adam.cost.seconds) for t in TARGETS]
        verdicts.append(
            Verdict(
                f"{contest.title}: {best.label} takes less modelled time than tuned Adam to all of 90, 95 and 97 %, "
                f"with {arrays}",
                f"{_join(ours for ours, _ in pairs)}, Adam {_join(theirs for _, theirs in pairs)}.",
                all(ours < theirs for ours, theirs in pairs) if min(min(pair) for pair in pairs) < math.inf else None,
            )
        )
    return verdicts


def _join(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.2g} s" if value < math.inf else "never" for value in values)


def judge_equal_time(contest: Contest, best: Entrant, adams: Sequence[Entrant]) -> list[Verdict]:
    """Return which method is more accurate within the same time, Adam with its budget of steps and with a longer one.

    Where Adam is behind and its longer run ends before that time, the verdict is open, since Adam had less time.
    """
    verdicts = []
    for words, clock in CLOCKS.items():
        budget = max((clock(best, run.evaluations[-1]) for run in best.runs if run.evaluations), default=math.inf)
        theirs = max(adam.accuracy_within(budget, clock) for adam in adams)
        longest = max(clock(adam, run.evaluations[-1]) for adam in adams for run in adam.runs if run.evaluations)
        verdicts.append(
            Verdict(
                f"{contest.title}: {best.label} ends more accurate than tuned Adam in the same {words}",
                f"{best.final:.2%} and {theirs:.2%} within {budget:.3g} s; Adam has the better of its two run lengths, "
                f"of which the longer one takes {longest:.3g} s.",
                None if best.final > theirs and longest < budget else best.final > theirs,
            ).of_paper("abstract: classification")
        )
    return verdicts
