"""A learnt potential, fitted to energies and forces, trains through a daemon in the ordinary loop."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

from host_client import Session, connect
from host_client.optimizers import TNGD
from tests.daemon import Daemon

PARTICLES = 4
FORCE_WEIGHT = 0.1


class Potential(nn.Module):
    """An energy from the distances between particles: a sum over pairs of a network of the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, positions: Tensor) -> Tensor:
        """Map positions (b, particles, 3) to energies (b,)."""
        return self.net(_distances(positions)[..., None]).sum((1, 2))


def _distances(positions: Tensor) -> Tensor:
    """The distance of each pair, shape (b, pairs)."""
    first, second = torch.triu_indices(PARTICLES, PARTICLES, offset=1)
    return (positions[:, first] - positions[:, second]).norm(dim=2)


def _morse(positions: Tensor) -> Tensor:
    """The energies to learn, shape (b,): a Morse potential for each pair."""
    return (1 - torch.exp(1 - _distances(positions))).square().sum(1)


def _forces(energies: Tensor, positions: Tensor, *, create_graph: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=create_graph)
    return -gradient


@pytest.fixture
def session(stepped: Daemon) -> Iterator[Session]:
    """On a daemon in a separate process."""
    with connect(stepped.address, timeout=30.0) as spu, spu.session() as one:
        yield one


def _configurations(b: int, generator: torch.Generator) -> Tensor:
    """Corners of a tetrahedron with sides of 1.5 that have been moved at random."""
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    noise = torch.randn(b, PARTICLES, 3, generator=generator, dtype=torch.float64)
    return (1.5 / 8**0.5 * corners + 0.15 * noise).requires_grad_()


# The gradient of an index is an `index_put`, through which samples are not followed: F costs more, and is correct.
@pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")
def test_a_potential_learns_energies_and_forces_with_a_curvature_that_is_always_verified(session: Session) -> None:
    model, criterion = Potential().double(), nn.MSELoss()
    optimizer = TNGD(model, criterion, session, lr=0.5, damping=1e-3, analog_time=1e4, start="drive", check="always")
    generator = torch.Generator().manual_seed(0)
    energy_losses, force_losses = [], []
    for _ in range(20):
        positions = _configurations(16, generator)
        expected = _morse(positions)
        expected_forces = _forces(expected, positions, create_graph=False)
        energies = model(positions)
        energy_loss = criterion(energies, expected.detach())
        force_loss = criterion(_forces(energies, positions, create_graph=True), expected_forces)
        (energy_loss + FORCE_WEIGHT * force_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        energy_losses.append(energy_loss.item())
        force_losses.append(force_loss.item())
    assert session.uploaded_bytes > 0
    assert optimizer.counts["updates"] == 20
    assert fmean(energy_losses[-5:]) < 1e-3 * fmean(energy_losses[:2]), energy_losses
    assert fmean(force_losses[-5:]) < 1e-2 * fmean(force_losses[:2]), force_losses
