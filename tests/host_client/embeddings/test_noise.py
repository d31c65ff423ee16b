"""A device's noise in g̃, each test with a false-alarm rate of 1e-6."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from host_client import connect
from host_client.embeddings import Kronecker, solve_exactly
from host_client.embeddings.kronecker import balance
from spu_link.operators import Rows
from tests.host_client.embeddings.operators import factors, rows, vector
from tests.statistics import assert_standard_normal, whiten

NOISE, DAMPING, SAMPLES = 0.02, 0.4, 150
APART = 40.0
"""Between two readings, in τ: a correlation of at most e^−16."""


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def test_in_sample_space_noise_stays_out_of_the_null_space_and_grows_by_the_damping_elsewhere() -> None:
    """The covariance of g̃ is κ₀ Aᵀ(AAᵀ + λI)⁻¹A / λ²."""
    a, drive = rows(3, 7).dense(), vector(7)
    operator = Rows(a)
    samples = []
    with connect("inproc:", clock="stepped", seed=3, embedding="sample") as spu, spu.session() as session:
        session.solve(operator, drive, analog_time=APART, damping=DAMPING, noise=NOISE)
        for _ in range(SAMPLES):
            session.advance(APART)
            samples.append(session.read().value)
    exact = torch.linalg.solve(a.T @ a + DAMPING * eye(7), drive)
    off = torch.stack(samples) - exact
    _, s, v = torch.linalg.svd(a)
    torch.testing.assert_close(off @ v[3:].T, torch.zeros(SAMPLES, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    covariance = torch.diag(NOISE * s**2 / (s**2 + DAMPING) / DAMPING**2)
    assert_standard_normal(whiten((off @ v[:3].T).numpy(), torch.zeros(3).double().numpy(), covariance.numpy()))


def test_blocks_have_the_noise_of_a_device_for_each() -> None:
    """The covariance of a block's part is κ₀ (F_b + λI)⁻¹, and the parts are independent."""
    operator, drive = rows(4, 2, 3), vector(5)
    with connect(["inproc:"] * 2, clock="stepped", seed=3, embedding="block") as spu, spu.session() as session:
        samples = [
            session.solve(operator, drive, analog_time=APART, damping=DAMPING, noise=NOISE).value
            for _ in range(SAMPLES)
        ]
    blocks = [layer.dense().T @ layer.dense() + DAMPING * eye(layer.parameters) for layer in operator.layers]
    curvature = torch.block_diag(*blocks)
    mean, covariance = torch.linalg.solve(curvature, drive), NOISE * torch.linalg.inv(curvature)
    assert_standard_normal(whiten(torch.stack(samples).numpy(), mean.numpy(), covariance.numpy()))


def test_in_kronecker_factors_the_noise_of_the_first_stage_passes_through_the_second() -> None:
    """With A' and B' the damped factors, the covariance of vec X is κ₀ (B'⁻¹ ⊗ I + B'⁻² ⊗ A'⁻¹), row by row."""
    operator = factors((2, 2))
    drive = vector(4)
    with connect("inproc:", clock="stepped", seed=3, embedding="kronecker") as spu, spu.session() as session:
        samples = [
            session.solve(operator, drive, analog_time=APART, damping=DAMPING, noise=NOISE).value
            for _ in range(SAMPLES)
        ]
    (layer,) = operator.blocks
    pi = balance(layer)
    a = torch.linalg.inv(layer.inputs + pi * math.sqrt(DAMPING) * eye(2)).contiguous()
    b = torch.linalg.inv(layer.cotangents + math.sqrt(DAMPING) / pi * eye(2)).contiguous()
    covariance = NOISE * (torch.kron(b, eye(2)) + torch.kron(b @ b, a))
    (exact,) = operator.matrices(solve_exactly(Kronecker(), operator, drive, DAMPING))
    found = torch.stack([operator.matrices(one)[0].flatten() for one in samples])
    assert_standard_normal(whiten(found.numpy(), exact.flatten().numpy(), covariance.numpy()))
