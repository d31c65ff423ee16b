"""State dictionaries that do not fit are refused by name, and nothing has changed then; those of before do fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from host_client import KFAC, NGD, TNGD, Session, connect, solve_dense
from tests.host_client.optimizers.tiny import Network, run, through_a_file
from tests.host_client.optimizers.training import same

DATA = Path(__file__).parents[2] / "data"

State = dict[str, Any]


def _optimizer(model: Network, **options: Any) -> NGD:
    settings = {"lr": 0.3, "damping": 0.1, "momentum": 0.9, "curvature_every": 2}
    return NGD(model, model.criterion, **{**settings, **options})


def put(value: Any, *path: Any) -> Callable[[State], None]:
    """Return what sets an entry of a state."""

    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def remove(*path: Any) -> Callable[[State], None]:
    """Return what removes an entry of a state."""

    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def _order(state: State) -> None:
    names = state["param_groups"][0]["param_names"]
    names[0], names[2] = names[2], names[0]


def _nan_in_curvature(state: State) -> None:
    tensors = state["operator"][-1]["tensors"]
    tensors[max(tensors)].view(-1)[-1] = float("nan")


def _fewer_parameters(state: State) -> None:
    del state["shapes"]
    state["param_groups"][0]["params"].pop()


BROKEN: list[tuple[Callable[[State], None], str]] = [
    (
        put(float("nan"), "state", 1, "momentum_buffer", 0),
        r"momentum_buffer of parameter '0\.bias' in the state dictionary is not finite",
    ),
    (
        put(float("inf"), "state", 7, "momentum_buffer", 0),
        r"momentum_buffer of parameter '4\.bias' in the state dictionary is not finite",
    ),
    (
        put(torch.zeros(9), "state", 0, "momentum_buffer"),
        r"momentum_buffer of parameter '0\.weight' in the state dictionary is \(9,\); .* shape \(3, 3\)",
    ),
    (
        put(0.0, "state", 0, "momentum_buffer"),
        r"momentum_buffer of parameter '0\.weight' in the state dictionary is float",
    ),
    (remove("state", 0, "momentum_buffer"), r"the state dictionary has no momentum_buffer of parameter '0\.weight'"),
    (put(float("nan"), "param_groups", 0, "lr"), "Invalid lr: nan"),
    (put(0.0, "param_groups", 0, "damping"), r"Invalid damping: 0\.0"),
    (put(-1, "param_groups", 0, "steps"), "Invalid steps in the state dictionary: -1"),
    (remove("param_groups", 0, "steps"), "it has no 'steps' in group 0"),
    (remove("param_groups", 0, "damping"), "it has no 'damping' in group 0"),
    (_order, r"in group 0 the first to differ was '2\.weight' and is '0\.weight' in this NGD"),
    (_nan_in_curvature, "the curvature in the state dictionary is not finite"),
    (remove("operator", -1), "the curvature in the state dictionary does not fit"),
    (put(b"\xff\xff", "operator", 0, "block"), "the curvature in the state dictionary does not fit"),
    (put({}, "operator", 0, "tensors"), "the curvature in the state dictionary does not fit"),
    (_fewer_parameters, "the state dictionary has 7 parameters in group 0, and this NGD 8"),
    (put(True, "param_groups", 0, "adam"), "group 0 is left to Adam in the state dictionary, and is not in this NGD"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_state_with_something_wrong_is_refused_and_training_goes_on(
    change: Callable[[State], None], message: str
) -> None:
    model, other = Network(), Network()
    optimizer, twin = _optimizer(model), _optimizer(other)
    for one, by in ((model, optimizer), (other, twin)):
        run(one, by, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = 0.7
    change(state)
    before = copy.deepcopy(optimizer.state_dict())
    seen: list[str] = []
    optimizer.register_load_state_dict_post_hook(lambda one: seen.append("loaded"))
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert same(optimizer.state_dict(), before)
    assert seen == []
    rest = [run(one, by, range(3, 6)) for one, by in ((model, optimizer), (other, twin))]
    assert all(torch.equal(a, b) for a, b in zip(*rest, strict=True))


def _adam(model: Network) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def _sgd(model: Network) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)


def _kfac(model: Network) -> torch.optim.Optimizer:
    return KFAC(model, model.criterion, lr=0.1, damping=0.1, groups=[{"params": model[3].parameters(), "adam": True}])


def _groups_in_another_order(model: Network) -> torch.optim.Optimizer:
    return _optimizer(model, groups=[{"params": model[0].parameters()}])


def _adams_group(model: Network) -> torch.optim.Optimizer:
    return _optimizer(model, groups=[{"params": model[2].parameters(), "adam": True}])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_adam, "is not that of a natural-gradient optimizer, and NGD needs one"),
        (_sgd, "is not that of a natural-gradient optimizer, and NGD needs one"),
        (_kfac, "is of another kind of optimizer than this NGD: of KFAC$"),
        (_groups_in_another_order, r"in group 0 the first to differ was '2\.weight' and is '0\.weight'"),
        (_adams_group, "group 1 is left to Adam in the state dictionary"),
    ],
)
def test_the_state_of_another_optimizer_is_refused(
    make: Callable[[Network], torch.optim.Optimizer], message: str
) -> None:
    model = Network()
    optimizer = _optimizer(model, groups=[{"params": model[2].parameters()}])
    before = copy.deepcopy(optimizer.state_dict())
    other = Network()
    state = make(other).state_dict()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(through_a_file(state))
    assert same(optimizer.state_dict(), before)


def test_a_curvature_of_kfac_that_does_not_fit_is_refused() -> None:
    model = Network()
    groups = [{"params": model[3].parameters(), "adam": True}]
    optimizer = KFAC(model, model.criterion, lr=0.1, damping=0.1, curvature_every=2, groups=groups)
    run(model, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    state["operator"][0]["inputs"] = state["operator"][0]["inputs"][1:, 1:]
    with pytest.raises(ValueError, match="the curvature in the state dictionary does not fit"):
        optimizer.load_state_dict(state)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """A stepped device."""
    with connect("inproc:", clock="stepped", seed=3) as spu, spu.session() as session:
        yield session


def test_a_refused_state_does_not_reach_the_device(session: Session) -> None:
    model = Network()
    optimizer = TNGD(model, model.criterion, session, lr=0.1, damping=0.1, analog_time=5.0)
    run(model, optimizer, range(2))
    state, reading = copy.deepcopy(optimizer.state_dict()), optimizer.last_reading
    run(model, optimizer, range(2, 4))
    before = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["reading"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"reading of parameter '0\.weight' in the state dictionary is not finite"):
        optimizer.load_state_dict(state)
    assert same(optimizer.state_dict(), before)
    assert optimizer.last_reading is not None
    assert optimizer.last_reading is not reading


@pytest.mark.parametrize("name", ["NGDCG", "NGDWoodbury"])
def test_the_state_of_a_class_of_before_is_loaded(name: str) -> None:
    model = Network()
    optimizer = _optimizer(model)
    run(model, optimizer, range(3))
    state = through_a_file(optimizer.state_dict())
    state["param_groups"][0].update(optimizer=name, tolerance=1e-3)
    resumed = _optimizer(Network(), solver=solve_dense)
    resumed.load_state_dict(state)
    assert resumed.hyperparameters["optimizer"] == "NGD"
    assert (resumed.steps, resumed.solver) == (3, solve_dense)


# --- Checkpoints of version 0.1, made by the same program ---


def _former(name: str, **changed: Any) -> tuple[nn.Sequential, NGD, Callable[[], None], State]:
    """Return what continues the run behind a checkpoint: three steps, then saved, then three more."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    criterion = nn.CrossEntropyLoss()
    matrices, rest = ([p for p in model.parameters() if (p.dim() > 1) == large] for large in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest}] if "groups" in name else None
    options: Any = {"lr": 0.1, "damping": 0.2, "momentum": 0.5, "curvature_every": 2, "groups": groups, **changed}
    optimizer = NGD(model, criterion, **options)

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(torch.linspace(-1, 1, 15).view(5, 3)), torch.arange(5) % 2).backward()
        optimizer.step()

    return model, optimizer, step, torch.load(DATA / name, weights_only=True)


@pytest.mark.parametrize("name", ["optimizer_of_0_1.pt", "optimizer_of_0_1_all_in_groups.pt"])
def test_a_checkpoint_of_the_version_before_is_resumed(name: str) -> None:
    model, optimizer, step, saved = _former(name)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert (optimizer.steps, optimizer.hyperparameters["damping"], optimizer.hyperparameters["spring"]) == (3, 0.1, 0.0)
    for _ in range(3):
        step()
    for parameter, after in zip(model.parameters(), saved["after"], strict=True):
        torch.testing.assert_close(parameter.detach(), after)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert optimizer.steps == 6


def test_a_checkpoint_of_the_version_before_that_does_not_fit_is_refused() -> None:
    _, optimizer, _, saved = _former("optimizer_of_0_1.pt")
    before = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(saved["optimizer"])
    other["shapes"][0][0] = (4, 5)
    with pytest.raises(ValueError, match=r"the first had the shape \(4, 5\) and has \(4, 3\) in this NGD, '0"):
        optimizer.load_state_dict(other)
    other = copy.deepcopy(saved["optimizer"])
    other["state"][0]["momentum_buffer"][0] = float("nan")
    with pytest.raises(
        ValueError, match=r"momentum_buffer of parameter '0\.weight' in the state dictionary is not fini"
    ):
        optimizer.load_state_dict(other)
    assert same(optimizer.state_dict(), before)


def test_a_hyperparameter_that_a_checkpoint_does_not_know_stays_as_it_is() -> None:
    _, optimizer, step, saved = _former("optimizer_of_0_1.pt", momentum=0.0, spring=0.5)
    with pytest.raises(ValueError, match=r"Invalid momentum: 0\.9; with spring it must be 0 in every group"):
        optimizer.load_state_dict(saved["optimizer"])
    saved["optimizer"]["param_groups"][0]["momentum"] = 0.0
    optimizer.load_state_dict(saved["optimizer"])
    assert (optimizer.hyperparameters["spring"], optimizer.hyperparameters["lr"]) == (0.5, 0.3)
    step()
    assert optimizer.steps == 4
