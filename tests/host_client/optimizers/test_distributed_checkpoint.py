"""Checkpoints by torch.distributed.checkpoint and by safetensors: without a process group, and without a step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from host_client import KFAC, NGD, TNGD, Session, connect
from host_client.optimizers.base import NaturalGradient
from tests.host_client.optimizers.tiny import Make, Network, run

STEPS = 3

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def _plain(model: Network) -> NaturalGradient:
    """Keeps nothing of any parameter."""
    return NGD(model, model.criterion, lr=0.3, damping=0.1)


def _momentum(model: Network) -> NaturalGradient:
    return NGD(model, model.criterion, lr=0.3, damping=0.1, momentum=0.9)


def _betas(model: Network) -> NaturalGradient:
    return NGD(model, model.criterion, lr=0.1, damping=0.1, betas=(0.9, 0.99))


def _spring(model: Network) -> NaturalGradient:
    return NGD(model, model.criterion, lr=0.3, damping=0.1, spring=0.9)


def _kfac(model: Network) -> NaturalGradient:
    norm = {"params": model.get_submodule("3").parameters(), "adam": True}
    return KFAC(model, model.criterion, lr=0.3, damping=0.1, momentum=0.9, groups=[norm])


def _all_named(model: Network) -> NaturalGradient:
    matrices, rest = ([p for p in model.parameters() if (p.dim() > 1) == large] for large in (True, False))
    groups = [{"params": rest, "adam": True, "name": "rest"}, {"params": matrices, "name": "matrices"}]
    return NGD(model, model.criterion, lr=0.3, damping=lambda step: 0.1 / (1 + step), momentum=0.9, groups=groups)


def _seldom(model: Network) -> NaturalGradient:
    """Its last curvature stays behind, and after three steps none is left."""
    return NGD(model, model.criterion, lr=0.3, damping=0.1, momentum=0.9, curvature_every=3)


MAKERS = [_plain, _momentum, _betas, _spring, _kfac, _all_named, _seldom]


def _no_step(*_: Any) -> None:
    raise AssertionError("a step was taken")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_a_run_saved_and_loaded_by_dcp_is_the_run_in_one_piece(make: Make, flat: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = Network()
    optimizer = make(model)
    run(model, optimizer, range(STEPS))
    saved, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": saved, "optimizer": state}, checkpoint_id=tmp_path)
    whole = run(model, optimizer, range(STEPS, 2 * STEPS))

    torch.manual_seed(1)
    other = Network()
    resumed = make(other)
    guard = resumed.register_step_pre_hook(_no_step)
    saved, state = get_state_dict(other, resumed, options=options)
    into = {"model": saved, "optimizer": state}
    dcp.load(into, checkpoint_id=tmp_path)
    set_state_dict(other, resumed, model_state_dict=into["model"], optim_state_dict=into["optimizer"], options=options)
    guard.remove()
    assert resumed.steps == STEPS
    rest = run(other, resumed, range(STEPS, 2 * STEPS))
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_what_dcp_gives_is_set_in_a_new_optimizer_at_once(make: Make, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other = Network(), Network()
    optimizer, resumed = make(model), make(other)
    run(model, optimizer, range(STEPS))
    resumed.register_step_pre_hook(_no_step)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    set_optimizer_state_dict(other, resumed, state, options=options)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert list(optimizer.state[mine]) == list(resumed.state[theirs])
        for name, value in optimizer.state[mine].items():
            assert torch.equal(value, resumed.state[theirs][name])
    groups = zip(optimizer.param_groups, resumed.param_groups, strict=True)
    assert all({**mine, "params": 0} == {**theirs, "params": 0} for mine, theirs in groups)


@pytest.mark.parametrize("make", MAKERS)
def test_the_state_of_a_new_optimizer_is_read_without_a_step(make: Make) -> None:
    model = Network()
    optimizer = make(model)
    optimizer.register_step_pre_hook(_no_step)
    before = [p.detach().clone() for p in model.parameters()]
    state = get_optimizer_state_dict(model, optimizer)
    assert set(state["state"]) == {path for path, _ in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_gradients_outlive_the_reading_of_the_state() -> None:
    model = Network()
    optimizer = _plain(model)
    model.criterion(model(torch.ones(2, 3)), torch.tensor([0, 1])).backward()
    get_optimizer_state_dict(model, optimizer)
    optimizer.step()
    assert optimizer.steps == 1


def test_the_keys_of_a_state_dictionary_are_those_of_a_new_optimizers() -> None:
    for make in MAKERS:
        model = Network()
        optimizer = make(model)
        before = {key: list(entries) for key, entries in optimizer.state_dict()["state"].items()}
        run(model, optimizer, range(STEPS))
        assert {key: list(entries) for key, entries in optimizer.state_dict()["state"].items()} == before


def test_of_two_optimizers_each_gets_its_own() -> None:
    model, other = Network(), Network()

    def both(one: Network) -> list[torch.optim.Optimizer]:
        last = one.get_submodule("4")
        natural = NGD(last, one.criterion, lr=0.3, damping=0.1, momentum=0.9)
        rest = [p for path, p in one.named_parameters() if not path.startswith("4.")]
        return [natural, torch.optim.SGD(rest, lr=0.1, momentum=0.9)]

    first, second = both(model), both(other)
    state = get_optimizer_state_dict(model, first)
    first[0].param_groups[0]["lr"] = 7.0
    state = get_optimizer_state_dict(model, first)
    set_optimizer_state_dict(other, second, state)
    assert [one.param_groups[0]["lr"] for one in second] == [7.0, 0.1]


def test_momentum_that_dcp_has_left_behind_is_missed(tmp_path: Path) -> None:
    model = Network()
    optimizer = _momentum(model)
    run(model, optimizer, range(STEPS))
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path)
    other = Network()
    resumed = NGD(other, other.criterion, lr=0.3, damping=0.1)  # without momentum
    into = {"optimizer": get_optimizer_state_dict(other, resumed)}
    dcp.load(into, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match=r"no momentum_buffer of parameter '0\.weight'"):
        set_optimizer_state_dict(other, resumed, into["optimizer"])
    resumed.hyperparameters["momentum"] = 0.9
    into = {"optimizer": get_optimizer_state_dict(other, resumed)}
    dcp.load(into, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, resumed, into["optimizer"])


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """A stepped device."""
    with connect("inproc:", clock="stepped", seed=3) as spu, spu.session() as session:
        yield session


def test_a_device_goes_on_from_the_last_reading(session: Session, tmp_path: Path) -> None:
    """Its state is no part of such a checkpoint."""

    def make(model: Network) -> TNGD:
        return TNGD(model, model.criterion, session, lr=0.1, damping=0.1, analog_time=5.0, momentum=0.5)

    model = Network()
    optimizer = make(model)
    asked = session.clock.device_time()
    get_optimizer_state_dict(model, optimizer)
    assert session.clock.device_time() == asked
    run(model, optimizer, range(STEPS))
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path)
    other = Network()
    other.load_state_dict(model.state_dict())
    resumed = make(other)
    into = {"optimizer": get_optimizer_state_dict(other, resumed)}
    dcp.load(into, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, resumed, into["optimizer"])
    readings = [
        torch.cat([one.state[p]["reading"].flatten() for p in m.parameters()])
        for one, m in ((optimizer, model), (resumed, other))
    ]
    assert torch.equal(*readings)
    assert readings[0].any()
    run(other, resumed, range(STEPS, STEPS + 1))
    assert resumed.steps == STEPS + 1


def _export(model: nn.Module, optimizer: NaturalGradient, path: Path) -> None:
    """As docs/optimizers.md has it."""
    flat = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    numbers = {key: value for key, value in flat.items() if key not in tensors}
    save_file(tensors, path, metadata={"numbers": json.dumps(numbers)})


def _import(model: nn.Module, optimizer: NaturalGradient, path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        flat: dict[str, Any] = json.loads(file.metadata()["numbers"])
        flat |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    set_optimizer_state_dict(model, optimizer, flat, options=options)


@pytest.mark.parametrize("make", MAKERS)
def test_a_run_is_resumed_from_safetensors(make: Make, tmp_path: Path) -> None:
    model, other = Network(), Network()
    optimizer, resumed = make(model), make(other)
    run(model, optimizer, range(STEPS))
    _export(model, optimizer, tmp_path / "optimizer.safetensors")
    other.load_state_dict(model.state_dict())
    whole = run(model, optimizer, range(STEPS, 2 * STEPS))
    _import(other, resumed, tmp_path / "optimizer.safetensors")
    rest = run(other, resumed, range(STEPS, 2 * STEPS))
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"betas": (0.9, 0.99)}, {"spring": 0.9}])
def test_parameters_in_any_memory_layout_are_exported(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    net[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net[2].weight = nn.Parameter(torch.randn(16, 2).t())
    criterion = nn.CrossEntropyLoss()
    optimizer = NGD(net, criterion, lr=0.1, damping=0.1, **options)
    for _ in range(2):
        criterion(net(torch.randn(3, 2, 4, 4)), torch.tensor([0, 1, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()
    _export(net, optimizer, tmp_path / "optimizer.safetensors")
    before = {p: {name: value.clone() for name, value in optimizer.state[p].items()} for p in net.parameters()}
    _import(net, optimizer, tmp_path / "optimizer.safetensors")
    for p, entries in before.items():
        for name, value in entries.items():
            assert torch.equal(optimizer.state[p][name], value)
