"""Scalar functions against 60 and more digits, over the whole range of eigenvalues and durations."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spu_server.dynamics import functions
from spu_server.dynamics.functions import clean, slope

DURATIONS = st.floats(-12, 12).map(lambda e: 10.0**e)
EIGENVALUES = st.just(0.0) | st.floats(-16, 8).map(lambda e: 10.0**e)
EPS = np.finfo(np.float64).eps


def textbook(f: float, duration: float) -> dict[str, mpmath.mpf]:
    """All functions by their textbook forms, in so many digits that their cancellation does not matter."""
    with mpmath.workdps(60 + int(max(0.0, -4.0 * math.log10(f * duration))) if f else 60):
        f, d = mpmath.mpf(f), mpmath.mpf(duration)
        if f == 0:
            return {
                "decay": mpmath.mpf(1),
                "response": d,
                "integrated_response": d**2 / 2,
                "diffusion": mpmath.sqrt(2 * d),
                "shared": mpmath.sqrt(d**3 / 2),
                "own": mpmath.sqrt(d**3 / 6),
            }
        once, twice = mpmath.exp(-f * d), mpmath.exp(-2 * f * d)
        response, a = (1 - once) / f, mpmath.sqrt((1 - twice) / f)
        c = response**2 / a
        variance = 2 / f**2 * (d - 2 * (1 - once) / f + (1 - twice) / (2 * f))
        return {
            "decay": once,
            "response": response,
            "integrated_response": (d - response) / f,
            "diffusion": a,
            "shared": c,
            "own": mpmath.sqrt(variance - c**2),
        }


@pytest.mark.parametrize("name", ["decay", "response", "integrated_response", "diffusion", "shared", "own"])
@given(f=EIGENVALUES, duration=DURATIONS)
@example(f=0.0, duration=1e-12)
@example(f=0.0, duration=1e12)
@example(f=2.0, duration=1.0)
@example(f=1e8, duration=1e12)
@example(f=1e-16, duration=1e-12)
def test_every_function_has_full_accuracy(name: str, f: float, duration: float) -> None:
    expected = textbook(f, duration)[name]
    found = float(getattr(functions, name)(np.asarray(f), duration))
    # e^{−y} cannot be better than y, which is rounded.
    tolerance = EPS * (1.0 + f * duration if name == "decay" else 4.0)
    assert abs(found - expected) <= tolerance * expected + np.finfo(np.float64).tiny


@pytest.mark.parametrize("name", ["response", "integrated_response", "diffusion", "shared", "own"])
def test_over_no_time_nothing_happens(name: str) -> None:
    assert float(getattr(functions, name)(np.asarray(3.0), 0.0)) == 0.0


@given(f=EIGENVALUES, duration=DURATIONS, noise=st.floats(1e-6, 1.0))
def test_the_textbook_variances_come_out(f: float, duration: float, noise: float) -> None:
    y = f * duration
    a, c, d, response = (
        float(getattr(functions, name)(np.asarray(f), duration)) for name in ("diffusion", "shared", "own", "response")
    )
    assert a * c == pytest.approx(response**2, rel=10 * EPS)  # cov(x', ∫x) / κ
    if 1e-2 < y < 1e2:
        variance = 2.0 / f**2 * (duration + 2.0 * math.expm1(-y) / f - math.expm1(-2.0 * y) / (2.0 * f))
        assert c * c + d * d == pytest.approx(variance, rel=1e-8)


@given(
    damping=EIGENVALUES, s=st.lists(st.floats(-10, 3).map(lambda e: 10.0**e), min_size=1), duration=st.floats(1e-3, 1e3)
)
def test_slope_restores_the_function(damping: float, s: list[float], duration: float) -> None:
    values = np.array(s)
    for h in functions.INTEGRAL:
        at_damping = h(np.asarray(damping), duration)
        restored = at_damping + values * slope(h, damping, values, duration)
        assert np.abs(restored - h(damping + values, duration)).max() <= 4 * EPS * at_damping


def test_slope_is_finite_where_the_eigenvalue_is_zero() -> None:
    assert slope(functions.response, 0.0, np.zeros(3), 1e12).tolist() == [0.0, 0.0, 0.0]


def test_clean_removes_what_may_be_rounding_and_nothing_else() -> None:
    found = clean(np.array([-1e-16, 0.0, 1e-16, 1e-9, 1.0]), 5)
    assert found.tolist() == [0.0, 0.0, 0.0, 1e-9, 1.0]
    assert clean(np.zeros(2), 2).tolist() == [0.0, 0.0]
