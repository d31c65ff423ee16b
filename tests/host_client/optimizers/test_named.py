from typing import Any, get_args

import pytest
import torch
from torch import nn

from host_client import TNGD, connect
from host_client.optimizers import KFAC, NGD, OptimizerName, hyperparameters_of, make_optimizer
from host_client.solvers import ConjugateGradients, Solver, solve_dense, solve_woodbury
from tests.cases import Problem
from tests.host_client.optimizers.training import train
from tests.torch_state import count_hooks

METHODS = {
    "tngd": TNGD,
    "ngd": NGD,
    "ngd-cg": NGD,
    "ngd-woodbury": NGD,
    "kfac": KFAC,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


@pytest.fixture
def classifier() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs = torch.randn(32, 6)
    return Problem(model, nn.CrossEntropyLoss(), inputs, inputs[:, :3].argmax(1))


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_switching_a_string_switches_the_method(classifier: Problem, name: OptimizerName) -> None:
    wanted = {"lr": 0.05, "damping": 0.1, "analog_time": 20.0, "curvature_every": 2}
    with connect("inproc:") as spu, spu.session() as session:
        optimizer = make_optimizer(
            name,
            classifier.model,
            classifier.criterion,
            session=session,
            **{option: value for option, value in wanted.items() if option in hyperparameters_of(name)},
        )
        assert type(optimizer) is METHODS[name]
        assert optimizer.param_groups[0]["lr"] == 0.05
        losses = train(classifier, optimizer, 8)
    assert losses[-1] < losses[0]


def test_the_name_chooses_the_solver_and_its_options_are_hyperparameters(classifier: Problem) -> None:
    def solver_of(name: str, **options: Any) -> Solver:
        optimizer = make_optimizer(name, classifier.model, classifier.criterion, lr=0.1, damping=0.1, **options)
        assert isinstance(optimizer, NGD)
        return optimizer.solver

    assert solver_of("ngd") is solve_dense
    assert solver_of("ngd-woodbury") is solve_woodbury
    assert solver_of("ngd-cg") == ConjugateGradients()
    assert solver_of("ngd-cg", iterations=7, tolerance=0.1) == ConjugateGradients(7, 0.1)
    with pytest.raises(ValueError, match="Invalid hyperparameters of ngd: solver"):
        solver_of("ngd", solver=solve_dense)


def test_what_a_method_does_not_take_is_named_with_what_it_takes(classifier: Problem) -> None:
    def make(name: str, **options: float) -> None:
        make_optimizer(name, classifier.model, classifier.criterion, **options)

    with pytest.raises(
        ValueError, match=r"Invalid hyperparameters of ngd-cg: analog_time; it takes adapt_damping.*iterat"
    ):
        make("ngd-cg", damping=0.1, analog_time=5.0)
    with pytest.raises(ValueError, match=r"Invalid hyperparameters of adam: damping; it takes amsgrad, betas"):
        make("adam", damping=0.1)
    with pytest.raises(ValueError, match=r"Invalid optimizer: 'newton'; it must be one of tngd, ngd, ngd-cg"):
        make("newton")
    with pytest.raises(ValueError, match="tngd needs a session on a device"):
        make("tngd", damping=0.1, analog_time=5.0)
    assert not count_hooks(classifier.model)


def test_frozen_parameters_stay_out_of_torchs_own(classifier: Problem) -> None:
    classifier.model[0].requires_grad_(False)
    optimizer = make_optimizer("sgd", classifier.model, classifier.criterion, lr=0.1)
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [(3, 8), (3,)]
