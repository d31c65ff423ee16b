"""Verdicts on the claims of arXiv 2405.13817 on runtime, from measured iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from spu_lab.studies.exponents import Exponent, fit_exponent
from spu_lab.studies.iteration_cost import Cost
from spu_lab.studies.iteration_methods import CG, METHODS
from spu_lab.studies.iteration_plan import STATED, SYMBOLS, Exponents, Quantity, Sweeps, Variable
from spu_lab.studies.paper_claims import TWICE
from spu_lab.studies.verdicts import Verdict

COLUMNS: Final = ("exponent of", *SYMBOLS.values(), "model calls")
"""Columns of the table; an exponent with its 95 % interval, and the stated one with its place in relation to it."""

ABOUT: Final = 1.5
"""Factor that "about 100×" leaves room for."""

QUANTITIES: Final[tuple[Quantity, ...]] = ("time", "memory")

Fitted = Mapping[Quantity, Mapping[Variable, Exponent]]
"""Exponents of one method."""


def fit(costs: Sequence[Cost], sweeps: Sweeps) -> Fitted:
    """Return the exponents of one method.

    Args:
        costs: of the method, in the order of ``sweeps.sizes``.
        sweeps: its sizes; where a sequence has fewer than two sizes, its exponents are left out.
    """
    by_size = dict(zip(sweeps.sizes, costs, strict=True))
    fitted: dict[Quantity, dict[Variable, Exponent]] = {"time": {}, "memory": {}}
    for variable in SYMBOLS:
        chosen = [by_size[size] for size in sweeps.of(variable)]
        if len(chosen) > 1:
            sizes = [getattr(cost.size, variable) for cost in chosen]
            fitted["time"][variable] = fit_exponent(sizes, [cost.seconds for cost in chosen])
            fitted["memory"][variable] = fit_exponent(sizes, [[cost.nbytes] for cost in chosen])
    return fitted


def rows(label: str, fitted: Fitted, calls: int) -> list[tuple[str, ...]]:
    """Return the two rows of a method in the table."""
    return [
        (
            f"{label}, {quantity}",
            *(_cell(fitted[quantity].get(name), stated) for name, stated in _stated(label, quantity)),
            str(calls) if quantity == "time" else "",
        )
        for quantity in QUANTITIES
    ]


def _stated(label: str, quantity: Quantity) -> list[tuple[Variable, int | None]]:
    """Return the stated exponents of a method, None where the paper states none."""
    stated: Exponents | tuple[None, None, None] = (None, None, None)
    if label in STATED:
        stated = STATED[label].time_exponents if quantity == "time" else STATED[label].memory_exponents
    return list(zip(SYMBOLS, stated, strict=True))


def _cell(exponent: Exponent | None, stated: int | None) -> str:
    if exponent is None:
        return "–"
    if stated is None:
        return f"{exponent}"
    return f"{exponent} ({stated}: {exponent.place(stated) or 'not decided'})"


def judge_exponents(label: str, fitted: Fitted, sweeps: Sweeps) -> list[Verdict]:
    """Compare the exponents of a method with those of the paper's table, which are upper bounds."""
    verdicts = []
    for quantity in QUANTITIES:
        parts, places = [], []
        for variable, stated in _stated(label, quantity):
            exponent = fitted[quantity].get(variable)
            if exponent is not None and stated is not None:
                places.append(exponent.place(stated))
                span = f"{exponent.smallest:,.0f} to {exponent.largest:,.0f}"
                words = f"stated {stated}: {places[-1] or 'not decided'}"
                parts.append(f"in {SYMBOLS[variable]} {exponent} over {span} ({words})")
        kind, bound = ("time", STATED[label].time) if quantity == "time" else ("memory", STATED[label].memory)
        dominant = (
            f" The largest term of the runtime there is {sweeps.term}." if quantity == "time" and sweeps.term else ""
        )
        holds = False if "above" in places else None if None in places or not places else True
        verdicts.append(
            Verdict(
                f"{label}: {kind} per iteration grows at most as {bound}",
                f"Exponents: {', '.join(parts)}.{dominant}",
                holds,
            ).of_paper("Table 1")
        )
    return verdicts


def judge_calls(calls: Mapping[str, int]) -> Verdict:
    """Compare the forward passes of an iteration with the stated model calls."""
    stated = {label: 2 * CG.iterations if label == "NGD-CG" else 1 for label in calls if METHODS[label].form == "paper"}
    counted = ", ".join(f"{label} {number}" for label, number in calls.items())
    return Verdict(
        "Model calls per iteration: 1 for SGD and Adam, 2c for NGD-CG, b d_z for NGD, NGD-Woodbury and TNGD",
        f"Forward passes, the gradient's own included: {counted}. All b d_z rows of J come from one forward pass, "
        "whose graph is walked once with all columns together.",
        all(calls[label] <= number + 1 for label, number in stated.items()),
    ).of_paper("Table 1")


def judge_adam(mnist: Mapping[str, Cost]) -> Verdict:
    """Compare TNGD on modelled devices, in the faster of its forms, with Adam on the reference network for MNIST."""
    adam = fmean(mnist["Adam"].seconds)
    parts, ratios = [], []
    for label, cost in mnist.items():
        if label != "Adam":
            seconds = fmean(cost.seconds)
            ratios.append(seconds / adam)
            host = seconds - cost.modelled
            words = f"{_ms(seconds)} ms, {_ms(host)} of them on the host and {_ms(cost.modelled)} on the device"
            parts.append(f"{label}: {_plain(ratios[-1])}× ({words})")
    return Verdict(
        "MNIST: an iteration of TNGD on the modelled device, in the faster of its forms, takes about 2× the time of "
        "one of Adam",
        f"Adam: {_ms(adam)} ms on one thread. {'; '.join(parts)}. The paper's host is an A100.",
        TWICE[0] <= min(ratios) <= TWICE[1],
    ).of_paper("abstract: cost")


def judge_speed(name: str, costs: Sequence[Cost]) -> Verdict:
    """Compare TNGD on modelled devices with a method at d_z = 20, both in the faster one of their forms.

    Args:
        name: of the method.
        costs: of all methods, where N is varied.
    """
    largest = max(cost.size.parameters for cost in costs if METHODS[cost.method].name == name)
    here = [cost for cost in costs if cost.size.parameters == largest]
    theirs = {cost.method: fmean(cost.seconds) for cost in here if METHODS[cost.method].name == name}
    ours = {
        cost.method: fmean(cost.seconds)
        for cost in here
        if METHODS[cost.method].name == "TNGD" and not METHODS[cost.method].device
    }
    ratio = min(theirs.values()) / min(ours.values())
    words = [f"{label} {_ms(seconds)} ms" for label, seconds in (ours | theirs).items()]
    paper = theirs[name] / ours["TNGD, device"]
    size = here[0].size
    return Verdict(
        f"An iteration of TNGD on the modelled device is about 100× faster than one of {name}",
        f"{_plain(ratio)}× at {size}, both in their faster form, and {_plain(paper)}× in the paper's: "
        f"{', '.join(words)}.",
        ratio >= 100.0 / ABOUT,
    ).of_paper("Fig. 2")


def _ms(seconds: float) -> str:
    return _plain(1e3 * seconds)


def _plain(number: float) -> str:
    """Return a number in three digits, or without its fraction."""
    return f"{number:.3g}" if number < 100.0 else f"{number:,.0f}"


def exponents_to_json(label: str, fitted: Fitted) -> dict[str, Any]:
    """Return the exponents of a method with their intervals and the stated ones, ready for JSON."""
    content: dict[str, Any] = {}
    for quantity in QUANTITIES:
        for variable, stated in _stated(label, quantity):
            if (exponent := fitted[quantity].get(variable)) is not None:
                half = exponent.half if exponent.half < float("inf") else None
                content[f"{quantity} in {SYMBOLS[variable]}"] = {
                    "exponent": exponent.value,
                    "half_width": half,
                    "range": [exponent.smallest, exponent.largest],
                    "stated": stated,
                    "place": None if stated is None else exponent.place(stated),
                }
    return content
