"""The two routes, through sample space and for a curvature held in full, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from spu_link.operators import Dense, Rows
from spu_server.dynamics import Step, Transition, routes
from spu_server.dynamics.dense import DenseTransition
from spu_server.dynamics.factor import FactorTransition
from spu_server.dynamics.functions import decay, diffusion, response
from spu_server.dynamics.transition import Progress

M, N = 300, 700


class Counted(Rows):
    """Rows that count what is asked of them."""

    def __init__(self, a: Tensor) -> None:
        super().__init__(a)
        self.calls: list[tuple[str, int]] = []

    def apply(self, v: Tensor) -> Tensor:
        self.calls.append(("apply", v.dim()))
        return super().apply(v)

    def adjoint(self, w: Tensor) -> Tensor:
        self.calls.append(("adjoint", len(w)))
        return super().adjoint(w)

    def gram(self) -> Tensor:
        self.calls.append(("gram", 0))
        return super().gram()


class CountedDense(Dense):
    """A curvature that counts how often it is asked for in full."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.calls: list[tuple[str, int]] = []

    def curvature_matrix(self) -> Tensor:
        self.calls.append(("matrix", 2))
        return super().curvature_matrix()


@cache
def problem(decades: float = 3.0, m: int = M, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A with `decades` decades of eigenvalues of AᵀA below 1, b and a state."""
    generator = torch.Generator().manual_seed(seed)
    a, b, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, N), (N,), (N,)))
    left, _, right = torch.linalg.svd(a, full_matrices=False)
    return (left * torch.logspace(0, -decades / 2, m, dtype=torch.float64)) @ right, b, x


def normals(seed: int = 1) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(N, generator=generator, dtype=torch.float64)


def through_eigenvectors(moving: Transition, *arguments: object, **options: object) -> Step:
    """The same step by a transition that has its eigenvectors."""
    other = type(moving)(moving.operator, moving.drive, damping=moving.damping, noise=moving.noise)
    other.resume(None, Progress(10**9, decomposed=False))
    step = other.step(*arguments, **options)
    assert other.progress(None).decomposed
    return step


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("duration", [1e-6, 0.1, 5.0, 50.0])
@pytest.mark.parametrize("start", ["tensor", "drive", "zero"])
@pytest.mark.parametrize("kind", [FactorTransition, DenseTransition])
def test_both_routes_agree(kind: type[Transition], damping: float, duration: float, start: str) -> None:
    a, b, x = problem()
    operator = Rows(a) if kind is FactorTransition else Dense(a.T @ a)
    moving = kind(operator, b, damping=damping, noise=1e-3)
    state = {"tensor": x, "drive": moving.drive, "zero": None}[start]
    step = moving.step(state, duration, normals(), integral=True)
    assert not moving.progress(None).decomposed
    exact = through_eigenvectors(moving, state, duration, normals(), integral=True)
    for one, other in zip(step, exact, strict=True):
        assert (one - other).norm() <= 1e-7 * other.norm()


SPECTRA: dict[str, Callable[[np.random.Generator, float], np.ndarray]] = {
    "any": lambda rng, decades: 10 ** (-decades * rng.random(M)),
    "geometric": lambda rng, decades: np.logspace(0, -decades, M),
    "algebraic": lambda rng, decades: np.arange(1, M + 1) ** -decades,
    "a few small": lambda rng, decades: np.r_[np.linspace(1, 2, M - 4), 10 ** (-decades * rng.random(4))],
    "a few large": lambda rng, decades: np.r_[
        10 ** (decades / 2 * rng.random(4)), 10 ** (-decades * rng.random(M - 4))
    ],
    "alike": lambda rng, decades: np.r_[1 + 1e-3 * rng.random(M - 4), 10 ** (-decades * rng.random(4))],
}
"""Eigenvalues of AAᵀ over some decades."""


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_by_lanczos_states_are_right_to_the_stated_tolerance(spectrum: str) -> None:
    rng = np.random.default_rng(0)
    tried = 0
    for problem in range(40):
        s = SPECTRA[spectrum](rng, rng.uniform(0.3, 4))
        damping, duration = 10 ** rng.uniform(-5, 0), 10 ** rng.uniform(-1, 3)
        b, x, z = rng.normal(size=(3, M))
        # Drives as random as can be, as gradients are, and with parts that are hard to see.
        b *= [np.ones(M), np.sqrt(s), 10 ** rng.uniform(-9, 0, M)][problem % 3]
        x *= 10 ** rng.uniform(-3, 3)
        a = torch.diag(torch.from_numpy(np.sqrt(s)))
        moving = FactorTransition(Rows(a), torch.from_numpy(b), damping=damping, noise=1e-6)
        found = moving.step(torch.from_numpy(x), duration, lambda z=z: torch.from_numpy(z)).state.numpy()
        if moving.progress(None).decomposed:
            continue
        tried += 1
        f = s + damping
        exact = decay(f, duration) * x + response(f, duration) * b + 1e-3 * diffusion(f, duration) * z
        assert np.linalg.norm(found - exact) <= 1e-7 * np.linalg.norm(exact)
    assert tried > 20


def test_a_small_problem_is_decomposed_at_once() -> None:
    a, b, _ = problem(m=routes.SMALL)
    moving = FactorTransition(Rows(a), b, damping=0.1, noise=0.0)
    moving.prepare()
    assert moving.progress(None).decomposed


def test_many_events_under_one_program_end_in_a_decomposition() -> None:
    a, b, x = problem()
    moving = FactorTransition(Rows(a), b, damping=0.01, noise=0.0)
    events = 0
    while not moving.progress(None).decomposed:
        moving.step(x, 1.0, normals())
        events += 1
        assert events < 100
    assert events > 3
    assert moving.progress(None).steps < 2 * routes.STEPS_PER_ROW * M


def test_a_process_that_does_not_converge_ends_in_a_decomposition() -> None:
    a, b, x = problem(decades=6.0)
    moving = FactorTransition(Rows(a), b, damping=1e-6, noise=0.0)
    step = moving.step(x, 3000.0, normals())
    assert moving.progress(None).decomposed
    assert moving.progress(None).steps > 0
    exact = through_eigenvectors(moving, x, 3000.0, normals())
    torch.testing.assert_close(step.state, exact.state, rtol=0, atol=0)


def test_a_stiff_problem_does_not_try_lanczos() -> None:
    a, b, x = problem()
    moving = FactorTransition(Rows(a), b, damping=0.0, noise=0.0)
    moving.step(x, 1e9, normals())
    assert moving.progress(None).decomposed
    assert moving.progress(None).steps == 0


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_steps_one_after_the_other_share_what_they_can(prepared: bool, noise: float) -> None:
    a, b, state = problem()
    operator = Counted(a)
    moving = FactorTransition(operator, b, damping=0.1, noise=noise)
    if prepared:
        moving.prepare()
    for _ in range(3):
        state = moving.step(state, 1.0, normals()).state
    assert operator.calls.count(("gram", 0)) == 1
    # A meets the drive and the first state once, and each step's noise; it never meets a state that a step led to.
    assert operator.calls.count(("apply", 2)) == (3 if noise else 1) + 1
    assert operator.calls.count(("adjoint", 1)) == 3


def test_what_a_step_says_of_its_state_is_what_the_operator_says() -> None:
    a, b, state = problem()
    moving = FactorTransition(Rows(a), b, damping=0.1, noise=0.1)
    for duration in (0.1, 50.0, 1.0):
        state = moving.step(state, duration, normals()).state
        torch.testing.assert_close(moving.progress(state).image, a @ state, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("m", [M, 20])
@pytest.mark.parametrize(("start", "noise", "products"), [
    ("tensor", 0.0, [("apply", 2), ("adjoint", 1)]),
    ("tensor", 0.1, [("apply", 2), ("adjoint", 1)]),
    ("drive", 0.0, [("adjoint", 1)]),
    ("zero", 0.0, [("adjoint", 1)]),
])  # fmt: skip
def test_a_step_takes_one_product_each_way_and_none_it_does_not_need(
    m: int, start: str, noise: float, products: list[tuple[str, int]]
) -> None:
    a, b, x = problem(m=m)
    operator = Counted(a)
    moving = FactorTransition(operator, b, damping=0.1, noise=noise)
    moving.prepare()
    operator.calls.clear()
    moving.step({"tensor": x, "drive": moving.drive, "zero": None}[start], 1.0, normals())
    assert operator.calls == products


def test_the_same_steps_give_the_same_bits() -> None:
    def run() -> Iterator[Tensor]:
        a, b, x = problem()
        moving = FactorTransition(Rows(a.float()), b, damping=0.01, noise=1e-4)
        source = normals()
        for duration in (0.1, 1.0, 50.0, 1e-9):
            x = moving.step(x, duration, source).state
            yield x

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


@pytest.mark.parametrize("m", [M, 20])
def test_whether_it_was_prepared_does_not_show_in_the_bits(m: int) -> None:
    """It is a matter of luck whether the driver finds the time to prepare, and products with several vectors at once
    round otherwise than with one."""
    a, b, x = problem(m=m)
    operator = Rows(a.float())
    idle, busy = (FactorTransition(operator, b, damping=0.01, noise=0.1) for _ in range(2))
    idle.prepare()
    one, other = (moving.step(x, 1.0, normals(), integral=True) for moving in (idle, busy))
    assert torch.equal(one.state, other.state)
    assert one.integral is not None
    assert torch.equal(one.integral, other.integral)


@pytest.mark.parametrize("kind", [FactorTransition, DenseTransition])
def test_another_drive_under_the_same_operator_costs_no_more_than_its_own_products(kind: type[Transition]) -> None:
    a, b, _ = problem()
    operator = Counted(a) if kind is FactorTransition else CountedDense(a.T @ a)
    first = kind(operator, -b, damping=0.1, noise=0.0)
    state = first.step(None, 1.0, normals()).state
    operator.calls.clear()
    second = first.under(b, damping=0.01, noise=0.0)
    step = second.step(state, 50.0, normals())
    assert operator.calls == ([("apply", 2), ("adjoint", 1)] if kind is FactorTransition else [])
    alone = kind(operator, b, damping=0.01, noise=0.0).step(state, 50.0, normals())
    torch.testing.assert_close(step.state, alone.state, rtol=1e-7, atol=1e-9)


def test_a_million_cells_cost_no_more_than_their_rows() -> None:
    n = 1_000_000
    row = torch.randn(1, n, generator=torch.Generator().manual_seed(0)) / n**0.5
    moving = FactorTransition(Rows(torch.cat([row, row])), row[0].double(), damping=0.5, noise=0.0)
    step = moving.step(None, 1e3, normals())
    # F has the eigenvalue 2‖row‖² along the row: b / (2‖row‖² + λ) in the end.
    expected = moving.drive / (2.0 * float(moving.drive @ moving.drive) + 0.5)
    assert (step.state - expected).norm() <= 1e-5 * expected.norm()
