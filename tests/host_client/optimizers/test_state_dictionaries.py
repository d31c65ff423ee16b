"""Everything that torch's optimizers let a program do with their state, hooks and groups."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from host_client import NGD, TNGD, connect
from host_client.optimizers.base import NaturalGradient
from tests.host_client.optimizers.tiny import Network, batch, run, through_a_file
from tests.host_client.optimizers.training import same


def _optimizer(model: Network, **options: Any) -> NGD:
    return NGD(model, model.criterion, **{"lr": 0.3, "damping": 0.1, "momentum": 0.9, **options})


# --- Parameter groups ---


def test_keys_of_groups_that_are_no_hyperparameters_are_kept() -> None:
    def keep(value: float) -> float:
        return value

    model = Network()
    own = {"name": "head", "initial_lr": 0.3, "lr_scale": 0.5, "tags": ["a", "b"], "norm_first": True}
    groups = [{"params": model[4].named_parameters(), **own, "lr": 0.1}]
    optimizer = _optimizer(model, groups=groups)
    assert own.items() <= optimizer.param_groups[1].items()
    run(model, optimizer, range(2))
    other = Network()
    resumed = _optimizer(other, groups=[{"params": other[4].parameters(), "callback": keep}])
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert own.items() <= resumed.param_groups[1].items()
    assert resumed.param_groups[1]["callback"] is keep  # no schedule, and not in the checkpoint
    assert resumed.param_groups[1]["lr"] == 0.1
    run(other, resumed, range(2))


def test_groups_know_the_paths_of_their_parameters_as_torchs_named_ones_do() -> None:
    model = Network()
    named = [(path, p) for path, p in model.named_parameters() if path.startswith("4.")]
    optimizer = _optimizer(model, groups=[{"params": named}])
    plain = torch.optim.SGD([{"params": named}], lr=0.1)
    assert optimizer.param_groups[1]["param_names"] == plain.param_groups[0]["param_names"] == ["4.weight", "4.bias"]
    assert "param_names: ['4.weight', '4.bias']" in repr(optimizer)


def test_groups_that_name_all_parameters_are_all_the_groups_there_are() -> None:
    """As with torch, so that a scheduler is given as many values."""
    model = Network()
    norm = list(model[3].parameters())
    rest = [p for p in model.parameters() if not any(p is one for one in norm)]
    optimizer = _optimizer(model, groups=[{"params": norm, "adam": True}, {"params": rest, "lr": 0.2}])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.2]
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0, lambda step: 0.5])
    assert optimizer.hyperparameters is optimizer.param_groups[1]
    assert (optimizer.hyperparameters["damping"], optimizer.hyperparameters["lr"]) == (0.1, 0.1)
    run(model, optimizer, range(2))
    assert optimizer.steps == 2


@pytest.mark.parametrize("key", ["steps", "optimizer", "weight_deacy", "momentun", "spring"])
def test_keys_that_are_taken_or_mistyped_are_refused(key: str) -> None:
    model = Network()
    with pytest.raises(ValueError, match=f"group 1 has '{key}'; a group like it may have 'adam', 'lr', "):
        _optimizer(model, groups=[{"params": model[4].parameters(), key: 0.5}])


# --- State ---


def test_loading_ties_nothing_together() -> None:
    model, other = Network(), Network()
    optimizer, resumed = _optimizer(model), _optimizer(other)
    run(model, optimizer, range(2))
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    resumed.load_state_dict(state)
    run(other, resumed, range(2))
    assert same(optimizer.state_dict(), before)


@pytest.mark.parametrize("options", [{}, {"betas": (0.9, 0.99), "momentum": 0.0}, {"spring": 0.9, "momentum": 0.0}])
def test_the_state_follows_a_model_that_gets_another_dtype(options: dict[str, Any]) -> None:
    model = Network()
    optimizer = _optimizer(model, **options)
    model.double()
    for step in range(2):
        inputs, targets = batch(step)
        model.criterion(model(inputs.double()), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    kept = [value for p in model.parameters() for name, value in optimizer.state[p].items() if name != "step"]
    assert {value.dtype for value in kept} == {torch.float64}
    model.float()
    run(model, optimizer, range(2))
    kept = [value for p in model.parameters() for name, value in optimizer.state[p].items() if name != "step"]
    assert {value.dtype for value in kept} == {torch.float32}


def test_what_a_program_keeps_in_the_state_stays_there() -> None:
    model = Network()
    optimizer = _optimizer(model)
    optimizer.state[model[0].weight]["mask"] = torch.tensor([True, False])
    optimizer.state["epoch"] = 3
    resumed = _optimizer(Network())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    first = resumed.param_groups[0]["params"][0]
    assert resumed.state[first]["mask"].any()
    assert resumed.state["epoch"] == 3


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_zeroed_as_torch_zeroes_them(set_to_none: bool) -> None:
    model = Network()
    optimizer = _optimizer(model)
    model.criterion(model(torch.ones(2, 3)), torch.tensor([0, 1])).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    if set_to_none:
        assert all(p.grad is None for p in model.parameters())
    else:
        assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    run(model, optimizer, range(1))


# --- Hooks ---


def test_hooks_around_a_step_are_called_in_torchs_order_and_may_give_a_closure() -> None:
    model = Network()
    optimizer = _optimizer(model)
    calls: list[str] = []

    def closure() -> float:
        calls.append("closure")
        loss = model.criterion(model(torch.ones(2, 3)), torch.tensor([0, 1]))
        loss.backward()
        return loss.item()

    def given(one: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        calls.append("before")
        return args, {**kwargs, "closure": closure}

    handles = [
        optimizer.register_step_pre_hook(given),
        optimizer.register_step_post_hook(lambda *_: calls.append(f"after {optimizer.steps}")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("before all")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after all")),
    ]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        assert optimizer.step() > 0.0
    assert calls == ["before all", "before", "closure", "after 1", "after all"]
    assert "Optimizer.step#NGD.step" in {event.key for event in profiler.key_averages()}
    for handle in handles:
        handle.remove()
    run(model, optimizer, range(1))
    assert len(calls) == 5


def test_hooks_of_the_state_dictionary_see_all_of_it() -> None:
    model = Network()
    optimizer = _optimizer(model, curvature_every=2)
    run(model, optimizer, range(1))
    seen: list[Any] = []
    optimizer.register_state_dict_pre_hook(lambda one: seen.append("second"))
    optimizer.register_state_dict_pre_hook(lambda one: seen.append("first"), prepend=True)
    optimizer.register_state_dict_post_hook(lambda one, state: {**state, "keys": list(state)})
    optimizer.register_state_dict_post_hook(lambda one, state: seen.append(list(state)), prepend=True)
    state = optimizer.state_dict()
    assert seen == ["first", "second", ["state", "param_groups", "shapes", "operator"]]
    assert state["keys"] == seen[-1]
    assert state["operator"] is not None
    _optimizer(Network(), curvature_every=2).load_state_dict(state)


def test_a_hook_before_loading_gives_what_is_checked_and_loaded() -> None:
    model = Network()
    optimizer = _optimizer(model)
    run(model, optimizer, range(3))
    state = optimizer.state_dict()
    state["param_groups"][0]["param_names"][0] = "first.weight"
    before = copy.deepcopy(state)
    resumed = _optimizer(Network())
    with pytest.raises(ValueError, match=r"the first to differ was 'first\.weight' and is '0\.weight'"):
        resumed.load_state_dict(state)

    def renamed(one: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        group = given["param_groups"][0]
        names = [name.replace("first", "0") for name in group["param_names"]]
        return {**given, "param_groups": [{**group, "param_names": names, "lr": 0.7}]}

    handle = resumed.register_load_state_dict_pre_hook(renamed)
    seen: list[Any] = []
    resumed.register_load_state_dict_post_hook(lambda one: seen.append((resumed.steps, resumed.hyperparameters["lr"])))
    resumed.load_state_dict(state)
    assert seen == [(3, 0.7)]
    assert same(state, before)  # as torch's, the caller's dictionary is as it was
    handle.remove()
    resumed.register_load_state_dict_pre_hook(lambda one, given: {**given, "param_groups": []})
    with pytest.raises(ValueError, match="not that of a natural-gradient optimizer"):
        resumed.load_state_dict(before)
    assert seen == [(3, 0.7)]


def test_the_state_of_the_device_is_seen_by_the_hooks_too() -> None:
    with connect("inproc:", clock="stepped", seed=3) as spu, spu.session() as session:
        model = Network()
        optimizer = TNGD(model, model.criterion, session, lr=0.1, damping=0.1, analog_time=5.0)
        run(model, optimizer, range(1))
        seen: list[Any] = []
        optimizer.register_state_dict_post_hook(lambda one, state: seen.append(state["device"]["state"] is not None))
        state = optimizer.state_dict()
        optimizer.register_load_state_dict_post_hook(lambda one: seen.append(one.last_reading))
        optimizer.load_state_dict(state)
    assert seen == [True, None]


# --- Wrappers ---


class _Wrapped(nn.Module):
    """As DistributedDataParallel holds a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.module(inputs)
        return outputs


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [_Wrapped, _compiled])
def test_a_wrapper_around_the_model_makes_no_other_parameters(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, other = Network(), Network()
    optimizer = _optimizer(model)
    run(model, optimizer, range(2))
    wrapped: NaturalGradient = NGD(wrap(other), other.criterion, lr=0.1, damping=0.1, momentum=0.9)
    wrapped.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(wrapped.state_dict())
    assert (wrapped.steps, optimizer.steps) == (2, 2)
