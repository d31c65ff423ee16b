"""Factors with more rows than columns: moved under F = AᵀA of N × N, as exactly as float64 allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from spu_link.operators import LayerRows, LinearRows, Rows
from spu_link.operators.base import CHUNK_ELEMENTS, FactorOperator
from spu_link.program import Program
from spu_server.dynamics import Transition, motion_of, transition_of
from spu_server.dynamics.functions import (
    at,
    decay,
    diffusion,
    integrated_response,
    response,
)
from tests.statistics import assert_standard_normal

M, N = 400, 97
EPSILON = float(np.finfo(np.float64).eps)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows() -> FactorOperator:
    """Explicit rows, singular values over 8 decades."""
    (left, _), (right, _) = torch.linalg.qr(random(M, N, seed=0)), torch.linalg.qr(random(N, N, seed=1))
    return Rows((left * torch.logspace(0, -8, N, dtype=torch.float64)) @ right.T)


def layers() -> FactorOperator:
    """Two layers in float32, whose rows come in other orders, singular values over more than 8 decades."""
    inputs, cotangents = random(M, 12, seed=0), random(1, M, 6, seed=1)
    inputs *= torch.logspace(0, -6, 12, dtype=torch.float64)
    last = random(4, M // 4, 1, seed=2) * 1e-3
    parts = [LinearRows(inputs.float(), cotangents.float(), bias=True)]
    parts += [LinearRows(random(M // 4, 18, seed=3).float(), last.float(), bias=True)]
    return LayerRows(parts)


def spectrum(operator: FactorOperator) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors (rows) of F from the singular values of A: small ones to ε ‖A‖, not ε ‖F‖."""
    _, s, right = np.linalg.svd(operator.map(Tensor.double).dense().numpy(), full_matrices=False)
    return s**2, right


def never() -> Tensor:
    raise AssertionError("noise was drawn")


def normals(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(N, generator=generator, dtype=torch.float64)


def moving(operator: FactorOperator, b: Tensor, damping: float, noise: float = 0.0) -> Transition:
    return transition_of(Program(operator, b, damping=damping, noise=noise))


@pytest.mark.parametrize("make", [rows, layers])
@pytest.mark.parametrize("damping", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("duration", [1e2, 1e4, 1e6])
def test_mean_and_integral_are_exact_to_the_rounding_of_f(
    make: Callable[[], FactorOperator], damping: float, duration: float
) -> None:
    """F is known to ε N ‖F‖, and what has had the time t to build up is divided by no less than λ + 1/t."""
    operator = make()
    assert operator.shape == (M, N)
    s, right = spectrum(operator)
    b = random(N, seed=5)
    motion = moving(operator, b, damping)
    step = motion.step(motion.drive, duration, never, integral=True)
    f, coordinates = s + damping, right @ b.numpy()
    state = right.T @ ((decay(f, duration) + response(f, duration)) * coordinates)
    integral = right.T @ ((response(f, duration) + integrated_response(f, duration)) * coordinates)
    tolerance = EPSILON * N * (1.0 + s.max() / (damping + 1.0 / duration))
    assert step.integral is not None
    for found, expected in ((step.state, state), (step.integral, integral)):
        assert np.linalg.norm(found.numpy() - expected) <= tolerance * np.linalg.norm(expected)


class Tall(Rows):
    """Rows that are never taken whole, nor against each other."""

    def __init__(self, a: Tensor) -> None:
        super().__init__(a)
        self.elements: list[int] = []

    def dense(self) -> Tensor:
        raise AssertionError("A was taken whole")

    def gram(self) -> Tensor:
        raise AssertionError("AAᵀ was made")

    def dense_rows(self, rows: slice) -> Tensor:
        self.elements.append((rows.stop - rows.start) * self.shape[1])
        return super().dense_rows(rows)


def test_a_great_many_rows_take_no_more_memory_than_a_chunk_of_them() -> None:
    m, n = 1_000_000, 9
    a = torch.randn(m, n, generator=torch.Generator().manual_seed(0)) / m**0.5
    operator, b = Tall(a), random(n, seed=1)
    step = moving(operator, b, 1e-3).step(None, 1e9, never)
    f = a.T.double() @ a.double() + 1e-3 * torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(step.state, torch.linalg.solve(f, b), rtol=1e-12, atol=0)
    assert sum(operator.elements) == m * n
    assert max(operator.elements) <= CHUNK_ELEMENTS


def test_another_drive_damping_and_noise_under_the_operator_make_no_new_f() -> None:
    operator, b = Tall(rows().dense()), random(N, seed=1)
    former = moving(operator, -b, 0.1)
    state = former.step(None, 3.0, never).state
    program = Program(operator, b, damping=1e-4, noise=0.2)
    made = len(operator.elements)
    step = motion_of(program, former=former).step(state, 50.0, normals(0), integral=True)
    assert len(operator.elements) == made
    alone = transition_of(program).step(state, 50.0, normals(0), integral=True)
    assert all(torch.equal(one, other) for one, other in zip(step, alone, strict=True))


def test_work_done_ahead_and_work_taken_up_again_give_the_same_bits() -> None:
    operator, b = layers(), random(N, seed=1)

    def onwards(motion: Transition, state: Tensor) -> Iterator[Tensor]:
        source = normals(7)
        for duration in (0.5, 1e3, 1e6):
            state, integral = motion.step(state, duration, source, integral=True)
            yield from (state, integral)

    begun, ahead = (moving(operator, b, 1e-6, 0.1) for _ in range(2))
    state = begun.step(None, 2.0, normals(3)).state
    fork = ahead.fork()
    assert torch.equal(fork.step(None, 2.0, normals(3)).state, state)
    ahead.adopt(fork)
    resumed = moving(operator, b, 1e-6, 0.1)
    resumed.resume(state, begun.progress(state))
    paths = [list(onwards(motion, state)) for motion in (begun, ahead, resumed)]
    for path in paths[1:]:
        assert all(torch.equal(one, other) for one, other in zip(path, paths[0], strict=True))


def test_fluctuations_have_the_law_of_f() -> None:
    """Along the eigenvectors of F, 300 states after one finite time are independent normals (rate: 1e-6)."""
    damping, noise, duration = 1e-4, 0.03, 30.0
    operator, b = rows(), random(N, seed=1)
    s, right = spectrum(operator)
    motion, source = moving(operator, b, damping, noise), normals(11)
    states = torch.stack([motion.step(None, duration, source).state for _ in range(300)]).numpy()
    f, along = s + damping, slice(0, N, 8)
    z = (states @ right.T - response(f, duration) * (right @ b.numpy())) / (noise**0.5 * diffusion(f, duration))
    assert at(diffusion, f[-1], duration) > 5.0 * at(diffusion, f[0], duration)
    assert_standard_normal(z[:, along])
