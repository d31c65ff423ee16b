"""SPRING, compared with dense algebra in float64, and its state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import KFAC, NGD, TNGD, ConjugateGradients, Session, solve_dense
from host_client.optimizers.base import NaturalGradient
from spu_link.errors import DeviceUnavailable
from spu_link.operators import FactorOperator, Rows
from tests.cases import Problem
from tests.host_client.optimizers.fakes import Recorder
from tests.host_client.optimizers.training import flat, train

LR, DAMPING, MU = 0.3, 0.2, 0.8


@pytest.fixture
def softmax() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(4, 5).double(), torch.randint(3, (4,)))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 5, generator=generator).double(), torch.randint(3, (4,), generator=generator))
        for _ in range(count)
    ]


def backward(problem: Problem, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Differentiate the loss of a batch; the gradient."""
    problem.model.zero_grad()
    problem.criterion(problem.model(batch[0]), batch[1]).backward()
    return torch.cat([p.grad.flatten() for p in problem.model.parameters() if p.grad is not None])


def curvature(optimizer: NaturalGradient) -> Tensor:
    """F of the gradients, in full."""
    assert optimizer.capture is not None
    operator = optimizer.capture.operator_of_gradients()
    dense = operator.dense()
    return dense.T @ dense if isinstance(operator, FactorOperator) else dense


def digital(kind: Any, **options: Any) -> Callable[[Problem, Session], NaturalGradient]:
    def make(problem: Problem, session: Session) -> NaturalGradient:
        return kind(problem.model, problem.criterion, lr=LR, damping=DAMPING, spring=MU, **options)

    return make


def analog(problem: Problem, session: Session, **options: Any) -> TNGD:
    settings: dict[str, Any] = {"lr": LR, "damping": DAMPING, "spring": MU, "analog_time": 200.0, **options}
    return TNGD(problem.model, problem.criterion, session, **settings)


@pytest.mark.parametrize(
    "make",
    [
        digital(NGD, solver=solve_dense),
        digital(NGD),
        digital(NGD, solver=ConjugateGradients(tolerance=1e-12)),
        digital(KFAC),
        analog,
    ],
    ids=["ngd", "ngd-woodbury", "ngd-cg", "kfac", "tngd"],
)
def test_only_the_drive_changes(
    softmax: Problem, session: Session, make: Callable[[Problem, Session], NaturalGradient]
) -> None:
    optimizer = make(softmax, session)
    previous = torch.zeros(flat(softmax.model).numel(), dtype=torch.float64)
    for batch in batches(5):
        before, gradient = flat(softmax.model), backward(softmax, batch)
        system = curvature(optimizer) + DAMPING * torch.eye(len(gradient), dtype=torch.float64)
        previous = torch.linalg.solve(system, gradient + DAMPING * MU * previous)
        optimizer.step()
        torch.testing.assert_close(flat(softmax.model), before - LR * previous, rtol=1e-5, atol=1e-6)


def test_it_does_not_depend_on_the_groups_of_the_parameters(softmax: Problem) -> None:
    other = copy.deepcopy(softmax)
    optimizer = digital(NGD)(softmax, None)  # type: ignore[arg-type]
    groups = [{"params": other.model[2].parameters(), "lr": 2 * LR}, {"params": [other.model[0].bias], "lr": 0.0}]
    grouped = digital(NGD, groups=groups)(other, None)  # type: ignore[arg-type]
    for batch in batches(3):
        other.model.load_state_dict(softmax.model.state_dict())
        before = [p.detach().clone() for p in softmax.model.parameters()]
        for problem, one in ((softmax, optimizer), (other, grouped)):
            backward(problem, batch)
            one.step()
        for p, q, start, factor in zip(
            softmax.model.parameters(), other.model.parameters(), before, [1.0, 0.0, 2.0, 2.0], strict=True
        ):
            torch.testing.assert_close(q - start, factor * (p - start))


def test_a_trust_region_shortens_the_update_and_not_what_is_remembered(softmax: Problem) -> None:
    optimizer = digital(NGD, trust_region=1e-6)(softmax, None)  # type: ignore[arg-type]
    previous = torch.zeros(flat(softmax.model).numel(), dtype=torch.float64)
    for batch in batches(3):
        before, gradient = flat(softmax.model), backward(softmax, batch)
        system = curvature(optimizer) + DAMPING * torch.eye(len(gradient), dtype=torch.float64)
        previous = torch.linalg.solve(system, gradient + DAMPING * MU * previous)
        optimizer.step()
        change = before - flat(softmax.model)
        torch.testing.assert_close(change / change.norm(), previous / previous.norm())
    assert optimizer.counts["trust region"] == 3


def test_a_preconditioner_goes_on_by_a_step(softmax: Problem) -> None:
    other = copy.deepcopy(softmax)
    train(softmax, digital(NGD)(softmax, None), 4)  # type: ignore[arg-type]
    preconditioner = digital(NGD)(other, None)  # type: ignore[arg-type]
    sgd = torch.optim.SGD(other.model.parameters(), lr=LR)
    sgd.register_step_pre_hook(lambda *_: preconditioner.precondition())
    train(other, sgd, 4)
    torch.testing.assert_close(flat(other.model), flat(softmax.model))


def test_a_step_along_the_gradient_for_want_of_a_device_is_along_the_gradient_alone(softmax: Problem) -> None:
    class Lost(Recorder):
        def exchange(self, *arguments: Any, **options: Any) -> Any:
            if self.fails:
                raise DeviceUnavailable("the daemon is gone")
            return super().exchange(*arguments, **options)

    device = Lost()
    optimizer = analog(softmax, device, on_loss="gradient")  # type: ignore[arg-type]
    train(softmax, optimizer, 1)
    device.fails = True
    before, gradient = flat(softmax.model), backward(softmax, batches(1)[0])
    optimizer.step()
    torch.testing.assert_close(flat(softmax.model), before - LR * gradient)


def test_what_a_batch_does_not_use_keeps_its_direction(softmax: Problem) -> None:
    n = flat(softmax.model).numel()
    optimizer = digital(NGD, curvature=lambda: Rows(torch.zeros(1, n).double()))(softmax, None)  # type: ignore[arg-type]
    last = softmax.model[2].weight
    backward(softmax, batches(1)[0])
    optimizer.step()
    kept, before = optimizer.state[last]["spring"].clone(), last.detach().clone()
    backward(softmax, batches(1)[0])
    last.grad = None
    optimizer.step()
    assert torch.equal(optimizer.state[last]["spring"], kept)
    assert torch.equal(last, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spring": 1.0}, r"Invalid spring: 1\.0; it must be at least 0 and less than 1"),
        ({"momentum": 0.5}, r"Invalid momentum: 0\.5; with spring it must be 0 in every group"),
        ({"betas": (0.9, 0.99)}, r"Invalid spring: 0\.8; with betas it must be 0"),
    ],
)
def test_a_second_momentum_is_refused(softmax: Problem, options: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"lr": LR, "damping": DAMPING, "spring": MU, **options}
    with pytest.raises(ValueError, match=message):
        NGD(softmax.model, softmax.criterion, **settings)
    groups = [{"params": [softmax.model[0].bias], "momentum": 0.5}]
    with pytest.raises(ValueError, match="in every group"):
        NGD(softmax.model, softmax.criterion, lr=LR, damping=DAMPING, spring=MU, groups=groups)


def test_a_scheduler_that_sets_momentum_in_addition_is_refused(softmax: Problem) -> None:
    optimizer = digital(NGD)(softmax, None)  # type: ignore[arg-type]
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=5)
    before = flat(softmax.model)
    with pytest.raises(ValueError, match="cycle_momentum=False"):
        train(softmax, optimizer, 1)
    assert torch.equal(flat(softmax.model), before)
