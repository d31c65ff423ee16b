"""Ways to minimise the loss of a differential equation, each a function that takes one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from host_client.blocking import Session
from host_client.optimizers import NGD, TNGD, LineSearch
from host_client.solvers import Solver
from spu_lab.studies.broyden import SelfScaledBroyden, Vector
from spu_lab.tasks.pinn import Problem

Stepper: TypeAlias = Callable[[], float]
"""Takes one step; returns the loss before it."""

HISTORY = 100
"""Pairs of vectors that L-BFGS keeps; from 75 to 250 are tried in arXiv 2405.15603."""


@dataclass(frozen=True)
class Growth:
    """A schedule: geometric growth over the first steps, and constant then.

    Attributes:
        first: value of the first step.
        last: value in the end.
        steps: after how many steps it is reached.
    """

    first: float
    last: float
    steps: int

    def __call__(self, step: int) -> float:
        """Return the value after so many steps."""
        return float(self.first * (self.last / self.first) ** min(step / self.steps, 1.0))


def by_device(
    problem: Problem, network: nn.Sequential, session: Session, *, damping: float, analog_time: Growth
) -> Stepper:
    """TNGD from the drive, with the whole step, halved until the loss decreases."""
    optimizer = TNGD(
        network,
        problem.criterion,
        session,
        lr=1.0,
        damping=damping,
        analog_time=analog_time,
        start="drive",
        line_search=LineSearch(),
    )
    return lambda: optimizer.step(_closure(problem, network, optimizer))


def by_solver(problem: Problem, network: nn.Sequential, solver: Solver, damping: float) -> Stepper:
    """Natural gradient descent with a solver and the same line search."""
    search = LineSearch()
    optimizer = NGD(network, problem.criterion, solver=solver, lr=1.0, damping=damping, line_search=search)
    return lambda: optimizer.step(_closure(problem, network, optimizer))


def by_adam(problem: Problem, network: nn.Sequential, *, rate: float, steps: int) -> Stepper:
    """Adam, whose learning rate falls to 0 as a cosine over all steps."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    closure = _closure(problem, network, optimizer)

    def step() -> float:
        loss = closure()
        optimizer.step()
        schedule.step()
        return loss

    return step


def by_lbfgs(problem: Problem, network: nn.Sequential) -> Stepper:
    """L-BFGS with a line search by the strong Wolfe conditions; a step is one of its iterations."""
    optimizer = torch.optim.LBFGS(
        network.parameters(),
        max_iter=1,
        max_eval=25,
        history_size=HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    return lambda: float(optimizer.step(_closure(problem, network, optimizer)))


def by_broyden(problem: Problem, network: nn.Sequential) -> Stepper:
    """Self-scaled Broyden with a dense inverse Hessian; see `SelfScaledBroyden`."""
    parameters = list(network.parameters())

    def function(x: Vector) -> tuple[float, Vector]:
        vector_to_parameters(torch.from_numpy(x), parameters)
        loss = problem.loss(network)
        gradient: Vector = parameters_to_vector(torch.autograd.grad(loss, parameters)).numpy()
        return loss.item(), gradient

    method = SelfScaledBroyden(function, parameters_to_vector(parameters).detach().numpy().copy())

    def step() -> float:
        before = method.step()
        vector_to_parameters(torch.from_numpy(method.x), parameters)
        return before

    return step


def _closure(problem: Problem, network: nn.Sequential, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """Return a function that computes the gradients of the loss, and returns the loss."""

    def closure() -> float:
        optimizer.zero_grad()
        loss = problem.loss(network)
        loss.backward()
        return loss.item()

    return closure
