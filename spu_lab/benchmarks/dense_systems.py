"""Dense systems with noise, and how thermox draws from the same process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from host_client import connect
from spu_link.operators import Dense

DAMPING, NOISE, TIME = 0.01, 1e-6, 50.0


def dense_system(n: int, *, flat: bool = False) -> tuple[Tensor, Tensor]:
    """F of shape (n, n) in a random basis, and a standard normal b of length n; float64.

    Args:
        n: number of cells.
        flat: eigenvalues evenly spaced up to 1 in place of 1, 1/2, …, 1/n.
    """
    places = torch.arange(1, n + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(n)
    basis, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    matrix = (basis * (places / n if flat else 1.0 / places)) @ basis.T
    return (matrix + matrix.T) / 2, torch.randn(n, dtype=torch.float64, generator=generator)


def thermox_draw(n: int) -> Callable[[], Any]:
    """A function that draws the state after `TIME` from the drive, its decompositions included."""
    import jax
    import thermox

    jax.config.update("jax_enable_x64", True)
    matrix, drive = dense_system(n)
    damped = matrix + DAMPING * torch.eye(n, dtype=torch.float64)
    drift, displacement, start = (
        jax.numpy.asarray(tensor.numpy()) for tensor in (damped, torch.linalg.solve(damped, drive), drive)
    )
    diffusion, times = 2.0 * NOISE * jax.numpy.eye(n), jax.numpy.asarray([0.0, TIME])
    keys = iter(range(1 << 62))

    def draw() -> Any:
        key = jax.random.PRNGKey(next(keys))
        return thermox.sample(key, times, start, drift, displacement, diffusion)[-1].block_until_ready()

    return draw


def check_thermox(n: int, draws: int = 4) -> float:
    """As `check_emulator`, of thermox."""
    draw = thermox_draw(n)
    return check_law(n, [torch.tensor(draw().tolist(), dtype=torch.float64) for _ in range(draws)])


def check_emulator(n: int, draws: int = 4) -> float:
    """Mean square of the emulator's whitened draws, which is 1 for draws from the law of the process."""
    matrix, drive = dense_system(n)
    with connect("inproc:") as spu, spu.session() as session:
        settings: dict[str, Any] = {"damping": DAMPING, "noise": NOISE, "analog_time": TIME, "start": "drive"}
        return check_law(n, [session.solve(Dense(matrix), drive, **settings).value for _ in range(draws)])


def check_law(n: int, draws: list[Tensor]) -> float:
    """Mean square of draws, less the mean of x at `TIME` and whitened by its covariance κ₀ (1 − e^{−2ft}) / f.

    Raises:
        ArithmeticError: when it is further from 1 than six of its standard deviations √(2 / (n · draws)).
    """
    matrix, drive = dense_system(n)
    values, vectors = torch.linalg.eigh(matrix)
    f, b = values + DAMPING, vectors.T @ drive
    mean = torch.exp(-f * TIME) * (b - b / f) + b / f
    deviation = (-NOISE * torch.expm1(-2.0 * f * TIME) / f).sqrt()
    whitened = (torch.stack(draws) @ vectors - mean) / deviation
    square = float(whitened.square().mean())
    if abs(square - 1.0) > 6.0 * (2.0 / whitened.numel()) ** 0.5:
        raise ArithmeticError(f"draws are not from the law of the process: their whitened mean square is {square:.4g}")
    return square
