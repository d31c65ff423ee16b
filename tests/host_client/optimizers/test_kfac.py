import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from host_client import NGD
from host_client.curvature import UnsupportedCriterion, UnsupportedLayer
from host_client.optimizers import KFAC
from tests.cases import Problem
from tests.host_client.optimizers.training import flat, train
from tests.torch_state import count_hooks


def regression(*, reduction: str = "mean", bias: bool = True) -> Problem:
    """One linear layer with a squared error, where the Kronecker product is the curvature."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=bias).double()
    inputs = torch.randn(12, 5, dtype=torch.float64)
    return Problem(model, nn.MSELoss(reduction=reduction), inputs, torch.randn(12, 3, dtype=torch.float64))


def network(*, seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(36, 8),
        nn.Tanh(),
        nn.Linear(8, 4),
    )
    targets = torch.randint(4, (40,))
    inputs = 0.1 * torch.randn(40, 1, 8, 8)
    inputs[torch.arange(40), 0, 2 * targets] += 1
    return Problem(model, nn.CrossEntropyLoss(), inputs, targets)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_where_the_factors_are_exact_steps_are_those_of_the_natural_gradient(reduction: str, bias: bool) -> None:
    problem = regression(reduction=reduction, bias=bias)
    other = copy.deepcopy(problem)
    train(problem, KFAC(problem.model, problem.criterion, lr=0.3, damping=0.05, momentum=0.5), 4)
    train(other, NGD(other.model, other.criterion, lr=0.3, damping=0.05, momentum=0.5), 4)
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=1e-9, atol=1e-9)


def test_micro_batches_are_one_batch() -> None:
    problem = regression()
    other = copy.deepcopy(problem)
    optimizer = KFAC(problem.model, problem.criterion, lr=0.3, damping=0.05)
    for part in range(3):
        rows = slice(4 * part, 4 * part + 4)
        (problem.criterion(problem.model(problem.inputs[rows]), problem.targets[rows]) / 3).backward()
    optimizer.step()
    train(other, KFAC(other.model, other.criterion, lr=0.3, damping=0.05), 1)
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("curvature", ["exact", "mc", "empirical"])
def test_it_trains_a_convolutional_network_with_factors_of_every_fourth_step(curvature: str) -> None:
    problem = network()
    optimizer = KFAC(
        problem.model,
        problem.criterion,
        lr=0.3,
        damping=0.05,
        curvature=curvature,  # type: ignore[arg-type]
        curvature_every=4,
        trust_region=0.1,
    )
    losses = train(problem, optimizer, 25)
    assert sum(losses[-3:]) < 0.3 * sum(losses[:3])


def test_the_factors_are_of_the_very_pass_that_was_differentiated_and_leave_random_numbers_alone() -> None:
    problem = network()
    masks = []
    problem.model[3].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    optimizer = KFAC(problem.model, problem.criterion, lr=0.1, damping=0.05)
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    state = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(masks) == 2
    assert torch.equal(masks[0], masks[1])


def test_labels_are_drawn_anew_for_each_step() -> None:
    problem = network()
    problem.model.eval()
    problem.model.training = True
    torch.manual_seed(3)
    steps = []
    for _ in range(2):
        one = copy.deepcopy(problem)
        optimizer = KFAC(one.model, one.criterion, lr=0.1, damping=0.05, curvature="mc")
        before = flat(one.model)
        train(one, optimizer, 1)
        steps.append(flat(one.model) - before)
    assert not torch.allclose(steps[0], steps[1], rtol=1e-3, atol=0)


def test_between_two_curvatures_a_checkpoint_holds_the_factors(tmp_path: Path) -> None:
    def make(problem: Problem) -> KFAC:
        return KFAC(problem.model, problem.criterion, lr=0.1, damping=0.05, momentum=0.9, curvature_every=5)

    problem = network()
    problem.model.eval()
    problem.model.training = True
    other = copy.deepcopy(problem)
    optimizer = make(problem)
    train(problem, optimizer, 3)
    torch.save({"model": problem.model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint")
    train(problem, optimizer, 4)
    checkpoint = torch.load(tmp_path / "checkpoint", weights_only=True)
    other.model.load_state_dict(checkpoint["model"])
    resumed = make(other)
    resumed.load_state_dict(checkpoint["optimizer"])
    train(other, resumed, 4)
    assert torch.equal(flat(problem.model), flat(other.model))


def test_outputs_of_one_dimension_are_refused() -> None:
    model, criterion = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), nn.BCEWithLogitsLoss()
    optimizer = KFAC(model, criterion, lr=1.0, damping=0.1)
    with pytest.raises(UnsupportedCriterion, match=r"outputs of shape \(6,\); K-FAC needs \(b, d\)"):
        criterion(model(torch.randn(6, 4)), torch.rand(6).round())
    optimizer.zero_grad()


def test_a_new_batch_forgets_the_last_one() -> None:
    problem = regression()
    optimizer = KFAC(problem.model, problem.criterion, lr=0.3, damping=0.05)
    other = copy.deepcopy(problem)
    problem.criterion(problem.model(7 * problem.inputs), problem.targets).backward()
    optimizer.zero_grad()
    train(problem, optimizer, 1)
    train(other, KFAC(other.model, other.criterion, lr=0.3, damping=0.05), 1)
    assert torch.equal(flat(problem.model), flat(other.model))


def test_other_parameters_may_be_left_to_adam() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    criterion = nn.CrossEntropyLoss()
    with pytest.raises(UnsupportedLayer, match=r"'1\.weight' belongs to LayerNorm.*leave it to Adam by a group"):
        KFAC(model, criterion, lr=1.0, damping=0.1)
    assert not count_hooks(model)
    optimizer = KFAC(
        model, criterion, lr=0.2, damping=0.1, groups=[{"params": model[1].parameters(), "adam": True, "lr": 0.01}]
    )
    losses = train(Problem(model, criterion, torch.randn(30, 5), torch.randint(3, (30,))), optimizer, 20)
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.equal(model[1].weight, torch.ones(6))


def test_shared_layers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(UnsupportedLayer, match="is shared by several layers"):
        KFAC(model, nn.CrossEntropyLoss(), lr=1.0, damping=0.1)


def test_a_layer_that_is_not_called_is_named() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.other = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.used(x), self.other.weight, self.other.bias)

    model = Model()
    problem = Problem(model, nn.CrossEntropyLoss(), torch.randn(6, 4), torch.randint(3, (6,)))
    with pytest.raises(UnsupportedLayer, match="'other' was not called as a module"):
        train(problem, KFAC(model, problem.criterion, lr=1.0, damping=0.1), 1)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nn.SmoothL1Loss(), "is SmoothL1Loss; K-FAC is known for CrossEntropyLoss, MSELoss, BCEWithLogitsLoss"),
        (nn.MSELoss(reduction="none"), r"criterion\.reduction is 'none'"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), r"criterion\.weight is given"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), r"criterion\.label_smoothing is 0\.1"),
    ],
)
def test_losses_that_it_would_get_wrong_are_refused(criterion: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedCriterion, match=message):
        KFAC(nn.Linear(4, 3), criterion, lr=1.0, damping=0.1)


def test_a_loss_of_something_else_than_the_output_is_refused() -> None:
    model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
    optimizer = KFAC(model, criterion, lr=1.0, damping=0.1)
    with pytest.raises(UnsupportedCriterion, match="something else than the model's last output"):
        criterion(2 * model(torch.randn(6, 4)), torch.randint(3, (6,)))
    optimizer.close()  # type: ignore[union-attr]
    criterion(2 * model(torch.randn(6, 4)), torch.randint(3, (6,)))


def test_targets_left_out_are_refused() -> None:
    problem = network()
    problem.targets[0] = -100
    with pytest.raises(UnsupportedCriterion, match="leaves out targets"):
        train(problem, KFAC(problem.model, problem.criterion, lr=1.0, damping=0.1), 1)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    model = nn.Linear(4, 3)
    with pytest.raises(ImportError, match=r"pip install 'tngd-spu\[kfac\]'"):
        KFAC(model, nn.CrossEntropyLoss(), lr=1.0, damping=0.1)
    assert not count_hooks(model)


def test_a_curvature_of_ones_own_is_refused() -> None:
    with pytest.raises(ValueError, match="K-FAC makes its own"):
        KFAC(nn.Linear(4, 3), nn.CrossEntropyLoss(), lr=1.0, damping=0.1, curvature=lambda: None)  # type: ignore[arg-type,return-value]
