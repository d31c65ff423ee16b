"""Choose η, λ and t by a recipe, and compare with a grid.

    python -m examples.choose_settings digits
    python -m examples.choose_settings regression --seeds 3 --grid
    python -m examples.choose_settings poisson --seeds 3 --grid
    python -m examples.choose_settings digits --seeds 3 --times

The recipe is that of docs/choosing.md: λ and η from short sweeps of the learning rate, or the smallest λ and a line
search if the loss has no noise; t = 5/λ. Its steps are taken through an emulated device in this process, on a stepped
clock. Those of the grid are solved digitally, which is what a device with t = 5/λ returns to 1 %. With --times the
λ and η of the recipe are tried with other t, and with analog_time="auto"; there is the device time of a step, too.

digits: MNIST, 784-32-10, 64 images a batch, one epoch of 10,000 images; the test loss.
regression: the data and the network of docs/tutorial.md, 128 points a batch, 10 epochs; the validation loss.
noiseless: the same without noise in the data, 30 steps on all points; the validation loss.
poisson: the physics-informed network of poisson_pinn.py, 50 steps on all points; the relative L2 error.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from examples.poisson_pinn import Poisson
from host_client import NGD, TNGD, Capture, LineSearch, Session, connect

Batch = tuple[Tensor, Tensor]
LossOf = Callable[[nn.Module, Any], Tensor]
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
TIMES = (5.0, 2.0, 1.0, 0.3, 0.1, 0.03)
"""Fixed t that are tried, times λ."""


def largest_eigenvalue(model, criterion, loss_of, batch):
    """Return μ_max, the largest eigenvalue of the curvature F of one batch."""
    capture = Capture(model, criterion)
    loss_of(model, batch).backward()
    gram = capture.operator_of_gradients().gram()  # AAᵀ has the nonzero eigenvalues of F = AᵀA
    capture.close()
    model.zero_grad()
    return torch.linalg.eigvalsh(gram.double())[-1].item()


def sweep(model, new_optimizer, loss_of, batches, low=0.01, high=3.0, steps=40):
    """Train a copy of the model with a growing learning rate; return the rates and the smoothed losses."""
    model = copy.deepcopy(model)
    optimizer = new_optimizer(model)
    rates, losses, average = [], [], 0.0
    for step in range(steps):
        rate = low * (high / low) ** (step / (steps - 1))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = loss_of(model, next(batches))
        if losses and not loss.item() < 4.0 * min(losses):
            break  # it diverges
        average = 0.8 * average + 0.2 * loss.item()
        rates.append(rate)
        losses.append(average / (1.0 - 0.8 ** (step + 1)))
        loss.backward()
        optimizer.step()
    optimizer.close()
    return rates, losses


def choose(model, criterion, session, loss_of, batches):
    """Return η, λ and t for mini-batches: sweeps with smaller and smaller λ until their lowest loss rises."""
    largest = largest_eigenvalue(model, criterion, loss_of, next(batches))
    best = None
    for power in range(1, 8):
        damping = largest * 10.0**-power
        settings = {"damping": damping, "analog_time": 5.0 / damping, "start": "drive"}

        def new_optimizer(copied, settings=settings):
            return TNGD(copied, criterion, session, lr=0.0, **settings)

        rates, losses = sweep(model, new_optimizer, loss_of, batches)
        lowest = min(losses)
        rate = rates[losses.index(lowest)]
        print(f"  λ {damping:.1e}: lowest smoothed loss {lowest:.3g} at η = {rate:.2g}")
        if best is None or lowest < best[0]:
            best = lowest, settings | {"lr": 0.1 * rate}
        elif lowest > 1.1 * best[0]:
            break
    return best[1]


def settings_for(damping: float) -> dict[str, Any]:
    """Return λ and a t that settles."""
    return {"damping": damping, "analog_time": 5.0 / damping, "start": "drive"}


class Problem:
    """A network with its loss.

    Attributes:
        dampings: λ of the grid.
        steps: number of steps to train.
        batches: batches without end.
        without_noise: whether the loss is computed on all data.
    """

    dampings: tuple[float, ...]
    steps: int
    model: nn.Module
    criterion: nn.Module
    batches: Iterator[Any]
    without_noise = False

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch."""
        x, y = batch
        loss: Tensor = self.criterion(model(x), y)
        return loss

    def score(self) -> float:
        """What is compared; less is better."""
        raise NotImplementedError


class Digits(Problem):
    """Handwritten digits."""

    dampings = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    steps = 157

    def __init__(self, seed: int) -> None:
        from spu_lab.tasks.mnist import mnist

        self.data = mnist()
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))
        self.criterion, self.batches = nn.CrossEntropyLoss(), self.data.batches(64, seed)

    def score(self) -> float:
        """The test loss."""
        return self.data.evaluate(self.model, self.data.test)[0]


class Regression(Problem):
    """A function of two inputs, from noisy measurements."""

    dampings = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    steps = 80

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        x = 2.0 * torch.rand(1024 + 512, 2) - 1.0
        y = torch.sin(6.0 * x[:, :1]) * torch.cos(4.0 * x[:, 1:]) + 0.02 * torch.randn(len(x), 1)
        self.validation = x[1024:], y[1024:]
        self.model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        self.criterion, self.batches = nn.MSELoss(), self._batches(x[:1024], y[:1024], seed)

    @staticmethod
    def _batches(x: Tensor, y: Tensor, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for places in torch.randperm(len(x), generator=generator).split(128):
                yield x[places], y[places]

    @torch.no_grad()
    def score(self) -> float:
        """The validation loss."""
        return self.loss(self.model, self.validation).item()


class Noiseless(Problem):
    """The same function from values without noise; all points are one batch."""

    dampings = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
    steps = 30
    without_noise = True

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        x = 2.0 * torch.rand(1024 + 512, 2, dtype=torch.float64) - 1.0
        y = torch.sin(6.0 * x[:, :1]) * torch.cos(4.0 * x[:, 1:])
        self.validation = x[1024:], y[1024:]
        self.model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)).double()
        self.criterion, self.batches = nn.MSELoss(), repeat((x[:1024], y[:1024]))

    @torch.no_grad()
    def score(self) -> float:
        """The validation loss."""
        return self.loss(self.model, self.validation).item()


class PoissonEquation(Problem):
    """A Poisson equation; all points are one batch."""

    dampings = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    steps = 50
    without_noise = True

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).double()
        self.equation = Poisson(torch.Generator().manual_seed(seed))
        self.criterion, self.batches = nn.MSELoss(), repeat(None)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean squared residual plus the mean squared value on the boundary."""
        residual, value = self.equation.residual(model), model(self.equation.boundary)
        inside: Tensor = self.criterion(residual, torch.zeros_like(residual))
        return inside + self.criterion(value, torch.zeros_like(value))

    def score(self) -> float:
        """The relative L2 error."""
        return self.equation.error(self.model)


PROBLEMS: dict[str, type[Problem]] = {
    "digits": Digits,
    "regression": Regression,
    "noiseless": Noiseless,
    "poisson": PoissonEquation,
}


def train(problem: Problem, optimizer: torch.optim.Optimizer) -> float:
    """Train; return the score, or infinity if the training diverges."""
    try:
        for _ in range(problem.steps):
            batch = next(problem.batches)

            def closure(batch: Any = batch) -> float:
                optimizer.zero_grad()
                loss = problem.loss(problem.model, batch)
                loss.backward()
                return loss.item()

            if not optimizer.step(closure) < 1e6:
                return math.inf
        return problem.score()
    except FloatingPointError:
        return math.inf
    finally:
        if isinstance(optimizer, NGD | TNGD):
            optimizer.close()


def settings_of(problem: Problem, session: Session) -> tuple[dict[str, Any], float]:
    """Return the settings that the recipe chooses, and μ_max."""
    largest = largest_eigenvalue(problem.model, problem.criterion, problem.loss, next(problem.batches))
    if problem.without_noise:
        settings = settings_for(1e-7 * largest) | {"lr": 1.0, "line_search": LineSearch()}
    else:
        settings = choose(problem.model, problem.criterion, session, problem.loss, problem.batches)
    print(f"  {settings}")
    return settings, largest


def recipe(name: str, seed: int, session: Session) -> dict[str, float]:
    """Return what the recipe reaches, and with bounded updates instead of η from a sweep."""
    make = PROBLEMS[name]
    settings, largest = settings_of(make(seed), session)
    exact = make.without_noise
    bounded: dict[str, Any] = {"lr": 1.0, "trust_region": 0.01}
    variants: dict[str, dict[str, Any]] = {
        "recipe": {},
        "line search": {"lr": 1.0, "line_search": LineSearch()},
        "trust region": bounded,
        "trust region, no sweeps": bounded | settings_for(0.01 * largest),
    }
    scores = {}
    for label, changes in variants.items():
        if exact and label != "recipe":
            continue
        problem = make(seed)
        scores[label] = train(problem, TNGD(problem.model, problem.criterion, session, **settings | changes))
        print(f"  {label}: {scores[label]:.3g}", flush=True)
    return scores


def times(name: str, seed: int, session: Session) -> dict[str, float]:
    """Return the scores with fixed t and with "auto", and the latter's device time a step times λ."""
    settings, _ = settings_of(PROBLEMS[name](seed), session)
    damping, scores = settings["damping"], {}
    for time_by_damping in (None, *TIMES):
        problem, began = PROBLEMS[name](seed), float(session.device_time)
        analog_time = "auto" if time_by_damping is None else time_by_damping / damping
        optimizer = TNGD(problem.model, problem.criterion, session, **settings | {"analog_time": analog_time})
        label = "auto" if time_by_damping is None else f"t = {time_by_damping:g}/λ"
        scores[label] = train(problem, optimizer)
        if time_by_damping is None:
            scores["auto: mean tλ"] = damping * (float(session.device_time) - began) / problem.steps
        print(f"  {label}: {scores[label]:.3g}", flush=True)
    return scores


def grid(name: str, seed: int) -> dict[str, float]:
    """Return the score for each λ and η; without noise in the loss there is a line search in the place of η."""
    scores = {}
    exact = PROBLEMS[name].without_noise
    for damping in PROBLEMS[name].dampings:
        for rate in (1.0,) if exact else RATES:
            problem = PROBLEMS[name](seed)
            search = LineSearch() if exact else None
            optimizer = NGD(problem.model, problem.criterion, lr=rate, damping=damping, line_search=search)
            scores[f"λ {damping:g}, η {rate:g}"] = train(problem, optimizer)
    return scores


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Return the scores of all seeds for the recipe and, if asked for, each point of the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=sorted(PROBLEMS))
    parser.add_argument("--seed", type=int, default=0, help="first seed of data and weights (default: 0)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, one after the other (default: 1)")
    parser.add_argument("--grid", action="store_true", help="also train with each λ and η of a grid")
    parser.add_argument("--times", action="store_true", help="train with other t instead, and with t found by itself")
    given = parser.parse_args(arguments)

    scores: dict[str, list[float]] = {}
    with connect("inproc:", clock="stepped", seed=0) as spu, spu.session() as session:
        for seed in range(given.seed, given.seed + given.seeds):
            begin = time.monotonic()
            print(f"seed {seed}")
            reached = (times if given.times else recipe)(given.problem, seed, session)
            reached |= grid(given.problem, seed) if given.grid else {}
            for label, score in reached.items():
                scores.setdefault(label, []).append(score)
            print(f"  {time.monotonic() - begin:.0f} s", flush=True)
    for label, of_seeds in scores.items():
        print(f"{label:28} {median(of_seeds):8.2e}   " + " ".join(f"{score:8.2e}" for score in of_seeds))
    return scores


if __name__ == "__main__":
    main()
