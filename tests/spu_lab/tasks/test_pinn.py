"""Differential equations: their solutions, residuals, points and errors."""

from __future__ import annotations

import pytest
import torch

from spu_lab.tasks.pinn import EQUATIONS, HEAT, POISSON_2D, POISSON_5D, Equation, Problem


def inside(equation: Equation) -> torch.Tensor:
    return torch.rand(200, equation.coordinates, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.name)
def test_the_solution_leaves_no_residual(equation: Equation) -> None:
    scale = 1.0 + float(equation.source(inside(equation)).abs().max())
    assert float(equation.residual_of(equation.solution, inside(equation)).detach().abs().max()) < 1e-12 * scale


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.name)
def test_the_residual_of_a_network_is_that_of_automatic_differentiation(equation: Equation) -> None:
    network = equation.build(3)
    torch.testing.assert_close(
        equation.residual(network, inside(equation)), equation.residual_of(network, inside(equation))
    )


@pytest.mark.parametrize(
    ("equation", "parameters", "rows"), [(HEAT, 257, 1_020), (POISSON_2D, 257, 1_020), (POISSON_5D, 449, 3_500)]
)
def test_sizes_are_those_of_the_paper(equation: Equation, parameters: int, rows: int) -> None:
    assert sum(parameter.numel() for parameter in equation.build(0).parameters()) == parameters
    assert equation.parameters == parameters
    assert Problem(equation, 0).rows == rows


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.name)
def test_boundary_points_lie_on_the_boundary(equation: Equation) -> None:
    points = equation.draw_boundary(120, torch.Generator().manual_seed(0))
    assert points.shape == (120, equation.coordinates)
    assert bool(((points >= 0.0) & (points <= 1.0)).all())
    on_face = (points == 0.0) | (points == 1.0)
    if equation is HEAT:  # half at the start, half on the walls, and none at the end
        assert int((points[:, 0] == 0.0).sum()) == 60
        on_face[:, 0] = points[:, 0] == 0.0
    assert bool(on_face.any(1).all())


def test_the_loss_is_half_the_mean_squares_inside_and_on_the_boundary() -> None:
    equation = POISSON_2D
    problem, network = Problem(equation, 0, interior=50, boundary=20), equation.build(0)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(50, 2, generator=generator, dtype=torch.float64)
    boundary = equation.draw_boundary(20, generator)
    residual, values = equation.residual(network, points), network(boundary) - equation.solution(boundary)
    expected = 0.5 * (residual.square().mean() + values.square().mean())
    torch.testing.assert_close(problem.loss(network), expected)


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.name)
def test_the_error_is_relative_to_the_solution_and_the_same_for_all_seeds(equation: Equation) -> None:
    problems = [Problem(equation, seed, interior=2, boundary=2) for seed in (0, 1)]
    assert problems[0].error(equation.solution) == 0.0
    assert problems[0].error(lambda points: 1.25 * equation.solution(points)) == pytest.approx(0.25)
    assert problems[0].error(equation.build(0)) == problems[1].error(equation.build(0))


def test_a_seed_gives_the_same_points_and_network_and_another_seed_others() -> None:
    losses = [
        Problem(HEAT, points, interior=30, boundary=10).loss(HEAT.build(network)).item()
        for points, network in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
