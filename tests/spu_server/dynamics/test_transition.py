"""Steps against dense algebra in float64, by both ways of holding F."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spu_link.operators import Dense, Rows
from spu_link.program import Program
from spu_server.dynamics import Transition, transition_of
from tests.profiles import examples
from tests.spu_server.dynamics.law import Law, law_by_exponentials, law_of

KINDS = ["rows", "dense"]
SHAPES = [(2, 5), (4, 5), (5, 5), (9, 4), (1, 1), (1, 6), (6, 1)]
SOLVE = 1e9


def transition(a: Tensor, b: Tensor, kind: str = "rows", *, damping: float = 0.0, noise: float = 0.0) -> Transition:
    operator = Rows(a) if kind == "rows" else Dense(a.T.double() @ a.double())
    return transition_of(Program(operator, b, damping=damping, noise=noise))


def problem(m: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A, b and a state."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, n), (n,), (n,)))


def law(a: Tensor, b: Tensor, kind: str, duration: float, *, damping: float, noise: float) -> Law:
    return law_of(lambda drive: transition(a, drive, kind, damping=damping, noise=noise), b, duration)


def assert_close(found: Law, expected: Law, tolerance: float) -> None:
    for name in ("offset", "start", "covariance"):
        one, other = getattr(found, name), getattr(expected, name)
        scale = max(np.abs(other).max(), 1e-300)
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=tolerance, err_msg=name)


def never() -> Tensor:
    raise AssertionError("noise was drawn")


@pytest.mark.parametrize("kind", KINDS)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5)),
    damping=st.sampled_from([0.0, 1e-9, 0.01, 2.0]),
    duration=st.floats(-4, 3).map(lambda e: 10.0**e),
    seed=st.integers(0, 1000),
)
@settings(max_examples=examples(40))
def test_state_and_integral_have_the_joint_law(
    kind: str, shape: tuple[int, int], damping: float, duration: float, seed: int
) -> None:
    a, b, _ = problem(*shape, seed)
    f = (a.T @ a).numpy() + damping * np.eye(shape[1])
    found = law(a, b, kind, duration, damping=damping, noise=0.3)
    assert_close(found, law_by_exponentials(f, b.numpy(), 0.3, duration), 1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duration", [1e-12, 1e-3, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_two_half_steps_are_one(kind: str, duration: float, damping: float) -> None:
    a, b, _ = problem(3, 5)
    half, whole = (law(a, b, kind, d, damping=damping, noise=0.2) for d in (duration / 2, duration))
    assert_close(half.then(half), whole, 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("duration", [0.0, 1e-12, 0.1, 5.0, 1e4, 1e12])
def test_both_ways_of_holding_f_agree(shape: tuple[int, int], damping: float, duration: float) -> None:
    a, b, _ = problem(*shape)
    laws = [law(a, b, kind, duration, damping=damping, noise=0.1) for kind in KINDS]
    assert_close(*laws, 1e-11 if damping else 1e-9)


DEFICIENT = {
    "more rows than cells": lambda a: a[:, :3],
    "duplicate rows": lambda a: torch.cat([a, a, a]),
    "a row of zeros": lambda a: torch.cat([a, torch.zeros_like(a[:1])]),
    "a column of zeros": lambda a: a * torch.tensor([1.0, 0.0] + [1.0] * (a.shape[1] - 2)),
    "nothing but zeros": torch.zeros_like,
    "rows of very different size": lambda a: a * torch.logspace(0, -7, len(a), dtype=torch.float64)[:, None],
}


@pytest.mark.parametrize("name", DEFICIENT)
@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_deficient_factors(name: str, damping: float) -> None:
    a = DEFICIENT[name](problem(4, 6)[0])
    b = problem(1, a.shape[1], 3)[1]
    f = (a.T @ a).numpy() + damping * np.eye(a.shape[1])
    found = law(a, b, "rows", 2.0, damping=damping, noise=0.5)
    assert_close(found, law_by_exponentials(f, b.numpy(), 0.5, 2.0), 1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "n"), [(60, 60), (90, 40), (300, 310)])
def test_a_long_time_gives_the_solve(kind: str, dtype: torch.dtype, m: int, n: int) -> None:
    a, b, x = problem(m, n)
    left, _, right = torch.linalg.svd(a, full_matrices=False)
    damping = 1e-3
    # Eigenvalues of F + λI from λ to 1e4 λ.
    eigenvalues = torch.logspace(-8, 0, min(m, n), dtype=torch.float64) * (1e4 - 1.0) * damping
    a, b = ((left * eigenvalues.sqrt()) @ right).to(dtype), b.to(dtype)
    step = transition(a, b, kind, damping=damping).step(x, SOLVE, never)
    f = a.double().T @ a.double() + damping * torch.eye(n, dtype=torch.float64)
    expected = torch.linalg.solve(f, b.double())
    assert (step.state - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_what_nothing_holds_back_grows_with_the_drive(kind: str) -> None:
    a, b, x = problem(2, 5)
    moving = transition(a, b, kind)
    outside = torch.eye(5, dtype=torch.float64) - torch.linalg.pinv(a) @ a
    step = moving.step(x, 1e3, never, integral=True)
    torch.testing.assert_close(outside @ step.state, outside @ (x + 1e3 * b), rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(outside @ step.integral, outside @ (1e3 * x + 5e5 * b), rtol=1e-10, atol=1e-6)


def test_a_start_at_the_drive_or_at_zero_is_a_start_like_any_other() -> None:
    a, b, _ = problem(4, 9)
    moving = transition(a, b, damping=0.1)
    for short, long in ((moving.drive, moving.drive.clone()), (None, torch.zeros(9, dtype=torch.float64))):
        for one, other in zip(
            moving.step(short, 1.5, never, integral=True), moving.step(long, 1.5, never, integral=True), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("noise", "duration", "integral", "draws"), [
    (0.0, 1.0, True, 0), (0.1, 0.0, True, 0), (0.1, 1.0, False, 1), (0.1, 1.0, True, 2),
])  # fmt: skip
def test_noise_is_drawn_only_where_it_acts(
    kind: str, noise: float, duration: float, integral: bool, draws: int
) -> None:
    a, b, x = problem(3, 5)
    drawn = []

    def normal() -> Tensor:
        drawn.append(torch.ones(5, dtype=torch.float64))
        return drawn[-1]

    transition(a, b, kind, noise=noise).step(x, duration, normal, integral=integral)
    assert len(drawn) == draws


@pytest.mark.parametrize("kind", KINDS)
def test_no_time_changes_nothing(kind: str) -> None:
    a, b, x = problem(3, 5)
    step = transition(a, b, kind, noise=0.1).step(x, 0.0, never, integral=True)
    assert torch.equal(step.state, x)
    assert torch.equal(step.integral, torch.zeros_like(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_leaves_its_inputs_alone(kind: str) -> None:
    a, b, x = problem(3, 5)
    moving = transition(a, b, kind, damping=0.1, noise=0.1)
    z = torch.ones(5, dtype=torch.float64)
    before = [t.clone() for t in (a, b, x, moving.drive)]
    first = moving.step(x, 1.0, lambda: z, integral=True)
    again = moving.step(x, 1.0, lambda: z, integral=True)
    assert all(torch.equal(t, u) for t, u in zip((a, b, x, moving.drive), before, strict=True))
    assert torch.equal(z, torch.ones_like(z))
    assert all(torch.equal(t, u) for t, u in zip(first, again, strict=True))


@given(scale=st.floats(-3, 3).map(lambda e: 10.0**e))
def test_the_mean_is_linear_in_drive_and_start(scale: float) -> None:
    a, b, x = problem(3, 5)
    one = transition(a, b, damping=0.1).step(x, 0.7, never).state
    scaled = transition(a, scale * b, damping=0.1).step(scale * x, 0.7, never).state
    torch.testing.assert_close(scaled, scale * one, rtol=1e-12, atol=0)
