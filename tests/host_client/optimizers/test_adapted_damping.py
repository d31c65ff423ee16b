import pytest
import torch
from torch import Tensor, nn

from host_client import NGD
from host_client.optimizers import KFAC, LevenbergMarquardt
from host_client.optimizers.base import NaturalGradient
from tests.cases import Problem
from tests.host_client.optimizers.training import closure_of, flat

EVERY = LevenbergMarquardt(every=1, grow=2.0, shrink=0.5)


def least_squares() -> Problem:
    """A linear model with a quadratic loss: the quadratic model of the loss is the loss."""
    torch.manual_seed(0)
    inputs = torch.randn(20, 5, dtype=torch.float64)
    return Problem(nn.Linear(5, 2).double(), nn.MSELoss(), inputs, torch.randn(20, 2, dtype=torch.float64))


def dropping() -> Problem:
    """A model whose loss depends on random numbers, with running statistics that go on with each forward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Dropout(0.5), nn.Linear(40, 3), Count()).double()
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(30, 5, dtype=torch.float64), torch.randint(3, (30,)))


class Count(nn.Module):
    """Counts the passes through it."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """As it is."""
        self.passes += 1
        return x


def test_where_the_quadratic_model_is_exact_damping_shrinks() -> None:
    problem = least_squares()
    optimizer = NGD(problem.model, problem.criterion, lr=0.5, damping=0.8, adapt_damping=EVERY)
    for step in range(4):
        optimizer.step(closure_of(problem, optimizer))
        assert optimizer.hyperparameters["damping"] == 0.8 / 2 ** (step + 1)
    assert optimizer.counts["damping shrunk"] == 4


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_prediction_is_of_the_whole_update_with_momentum_and_decay(momentum: float) -> None:
    problem = least_squares()
    found = []

    class Watched(LevenbergMarquardt):
        def adapt(self, damping: float, ratio: float) -> float:
            found.append(ratio)
            return super().adapt(damping, ratio)

    optimizer = NGD(
        problem.model,
        problem.criterion,
        lr=0.1,
        damping=0.8,
        momentum=momentum,
        weight_decay=0.01,
        adapt_damping=Watched(every=1),
    )
    for _ in range(3):
        optimizer.step(closure_of(problem, optimizer))
    assert found == pytest.approx([1.0, 1.0, 1.0], abs=1e-9)


def test_where_the_quadratic_model_promises_too_much_damping_grows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), torch.randn(9, 5).double(), torch.randint(3, (9,)))
    optimizer = NGD(model, problem.criterion, lr=1.0, damping=1e-6, adapt_damping=EVERY)
    for _ in range(3):
        optimizer.step(closure_of(problem, optimizer))
    assert optimizer.hyperparameters["damping"] == 8e-6
    assert optimizer.counts["damping grown"] == 3


def test_it_judges_every_so_many_steps_only() -> None:
    problem = least_squares()
    rule = LevenbergMarquardt(every=3, shrink=0.5)
    optimizer = NGD(problem.model, problem.criterion, lr=0.5, damping=0.8, adapt_damping=rule)
    calls = 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        return closure_of(problem, optimizer)()

    seen = []
    for _ in range(6):
        optimizer.step(closure)
        seen.append((calls, optimizer.hyperparameters["damping"]))
    assert seen == [(1, 0.8), (2, 0.8), (4, 0.4), (5, 0.4), (6, 0.4), (8, 0.2)]


def test_the_second_look_leaves_no_trace_but_the_damping() -> None:
    def run(adapt: LevenbergMarquardt | None) -> tuple[Problem, NaturalGradient, Tensor, list[float]]:
        problem = dropping()
        optimizer = NGD(problem.model, problem.criterion, lr=0.3, damping=0.1, adapt_damping=adapt)
        losses = [torch.as_tensor(optimizer.step(closure_of(problem, optimizer))).item() for _ in range(4)]
        return problem, optimizer, torch.rand(3), losses

    unmoved = LevenbergMarquardt(every=1, grow=1 + 1e-15, shrink=1 - 1e-15, min=0.1, max=0.1 + 1e-16 + 1e-12)
    one, other = run(unmoved), run(None)
    assert other[3] == pytest.approx(one[3], rel=1e-9)
    torch.testing.assert_close(flat(one[0].model), flat(other[0].model), rtol=1e-9, atol=1e-9)
    assert torch.equal(one[2], other[2])
    assert int(one[0].model[-1].passes) == int(other[0].model[-1].passes) == 4
    for p, q in zip(one[0].model.parameters(), other[0].model.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)
    # A step without a closure would find no curvature of a loss that it has not seen.
    one[1].adapt_damping = None
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\) before step"):
        one[1].step()


def test_the_masks_of_dropout_are_those_of_the_loss_that_was_differentiated() -> None:
    problem = dropping()
    masks = []
    problem.model[2].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    optimizer = NGD(problem.model, problem.criterion, lr=0.3, damping=0.1, adapt_damping=EVERY)
    for _ in range(2):
        optimizer.step(closure_of(problem, optimizer))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_adapted_damping_is_saved_and_resumed() -> None:
    problem = least_squares()
    optimizer = NGD(problem.model, problem.criterion, lr=0.5, damping=0.8, adapt_damping=EVERY)
    optimizer.step(closure_of(problem, optimizer))
    other = NGD(problem.model, problem.criterion, lr=0.5, damping=0.8, adapt_damping=EVERY)
    other.load_state_dict(optimizer.state_dict())
    assert other.hyperparameters["damping"] == 0.4


def test_it_goes_with_kfac_and_with_a_curvature_every_few_steps() -> None:
    problem = least_squares()
    optimizer = KFAC(
        problem.model, problem.criterion, lr=0.5, damping=0.8, adapt_damping=EVERY, curvature_every=3, trust_region=10.0
    )
    for _ in range(5):
        optimizer.step(closure_of(problem, optimizer))
    assert optimizer.hyperparameters["damping"] == 0.8 / 32


def test_parameters_left_to_adam_count_with_their_gradient() -> None:
    problem = least_squares()
    optimizer = NGD(
        problem.model,
        problem.criterion,
        lr=0.1,
        damping=0.8,
        groups=[{"params": [problem.model.bias], "adam": True, "lr": 1e-4}],
        adapt_damping=EVERY,
    )
    optimizer.step(closure_of(problem, optimizer))
    assert optimizer.hyperparameters["damping"] == 0.4


def test_without_a_closure_it_says_what_it_needs() -> None:
    problem = least_squares()
    optimizer = NGD(problem.model, problem.criterion, lr=1.0, damping=0.8, adapt_damping=EVERY)
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    before = flat(problem.model)
    with pytest.raises(RuntimeError, match=r"give step\(closure\)"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"call step\(closure\) instead of precondition\(\)"):
        optimizer.precondition()
    assert torch.equal(flat(problem.model), before)


def test_a_schedule_in_addition_to_it_is_refused() -> None:
    problem = least_squares()
    with pytest.raises(ValueError, match="with adapt_damping it must be a number"):
        NGD(problem.model, problem.criterion, lr=1.0, damping=lambda step: 0.1, adapt_damping=EVERY)
