"""Parameter groups, parameters left to Adam, and parameters that are frozen."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import NGD, TNGD, Session
from host_client.curvature import Capture
from host_client.solvers import solve_dense
from tests.cases import Problem
from tests.host_client.optimizers.training import flat, train
from tests.torch_state import count_hooks


@pytest.fixture
def mlp() -> Problem:
    """Two linear layers and a norm between them; small enough for matrices in full."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(8, 6), torch.randint(3, (8,)))


def _optimizer(problem: Problem, groups: Any, **options: Any) -> NGD:
    return NGD(problem.model, problem.criterion, groups=groups, **{"lr": 0.1, "damping": 0.1, **options})


def _moves(problem: Problem, optimizer: torch.optim.Optimizer, steps: int = 1) -> list[Tensor]:
    before = [p.detach().clone() for p in problem.model.parameters()]
    train(problem, optimizer, steps)
    return [p.detach() - q for p, q in zip(problem.model.parameters(), before, strict=True)]


def test_groups_share_one_curvature_and_have_their_own_learning_rates(mlp: Problem) -> None:
    other = copy.deepcopy(mlp)
    # The last layer first and a generator: the order of the groups is not that of the model.
    groups = [{"params": mlp.model[3].parameters(), "lr": 0.3}, {"params": mlp.model[0].weight, "lr": 0.0}]
    found = _moves(mlp, _optimizer(mlp, groups))
    plain = _moves(other, _optimizer(other, None))
    for move, alone, factor in zip(found, plain, [0.0, 1.0, 1.0, 1.0, 3.0, 3.0], strict=True):
        torch.testing.assert_close(move, factor * alone, rtol=1e-4, atol=1e-7)


def test_groups_have_their_own_momentum_and_weight_decay(mlp: Problem) -> None:
    other = copy.deepcopy(mlp)
    decayed = [p for p in mlp.model.parameters() if p.dim() > 1]
    optimizer = _optimizer(mlp, [{"params": decayed, "weight_decay": 0.5, "momentum": 0.9}])
    before = [p.detach().clone() for p in mlp.model.parameters()]
    found, plain = _moves(mlp, optimizer), _moves(other, _optimizer(other, None))
    for move, alone, start in zip(found, plain, before, strict=True):
        decay = 0.1 * 0.5 * start if start.dim() > 1 else torch.zeros_like(start)
        torch.testing.assert_close(move, alone - decay, rtol=1e-4, atol=1e-6)
    with_buffer = [p for p in mlp.model.parameters() if "momentum_buffer" in optimizer.state[p]]
    assert [id(p) for p in with_buffer] == [id(p) for p in decayed]


def test_what_is_left_to_adam_takes_its_steps_and_is_no_part_of_the_curvature(mlp: Problem) -> None:
    other, adams = copy.deepcopy(mlp), copy.deepcopy(mlp)
    norm = list(mlp.model[1].parameters())
    optimizer = _optimizer(
        mlp,
        [{"params": norm, "adam": True, "lr": 0.05, "betas": (0.5, 0.9), "weight_decay": 0.2}],
        lr=0.1,
    )
    assert optimizer.capture is not None
    paths = [path for path, _ in optimizer.capture.parameters()]
    assert paths == ["0.weight", "0.bias", "3.weight", "3.bias"]
    found = _moves(mlp, optimizer)

    # The natural gradient is that of a model in which the norm is frozen …
    other.model[1].requires_grad_(False)
    natural = _moves(other, _optimizer(other, None))
    # … and the norm moves as with AdamW.
    adam = torch.optim.AdamW(adams.model[1].parameters(), lr=0.05, betas=(0.5, 0.9), weight_decay=0.2)
    plain = _moves(adams, adam)
    for index, expected in enumerate([*natural[:2], *plain[2:4], *natural[4:]]):
        torch.testing.assert_close(found[index], expected, rtol=1e-5, atol=1e-7)


def test_what_is_left_to_adam_has_adams_defaults_and_not_the_optimizers(mlp: Problem) -> None:
    optimizer = _optimizer(mlp, [{"params": mlp.model[1].parameters(), "adam": True}], lr=1.0, weight_decay=0.1)
    group = {name: value for name, value in optimizer.param_groups[1].items() if not name.startswith("param")}
    assert group == {"adam": True, "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def test_a_bias_may_be_left_to_adam_without_its_weight(mlp: Problem) -> None:
    other = copy.deepcopy(mlp)
    optimizer = _optimizer(mlp, [{"params": [mlp.model[0].bias, mlp.model[3].bias], "adam": True, "lr": 0.0}])
    for layer in (other.model[0], other.model[3]):
        layer.bias.requires_grad_(False)
    found, expected = _moves(mlp, optimizer, 3), _moves(other, _optimizer(other, None), 3)
    for move, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(move, wanted)


def test_parameters_of_adam_without_a_gradient_stay_where_they_are(mlp: Problem) -> None:
    mlp.model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    unused = mlp.model.get_parameter("unused")
    optimizer = _optimizer(mlp, [{"params": [unused], "adam": True, "weight_decay": 0.5}])
    train(mlp, optimizer, 2)
    assert unused.tolist() == [1.0, 1.0]
    assert optimizer.steps == 2


def test_the_device_is_sent_what_has_a_natural_gradient(mlp: Problem, session: Session) -> None:
    other = copy.deepcopy(mlp)
    options: Any = {"lr": 0.1, "damping": 0.1}

    def groups(problem: Problem) -> list[dict[str, Any]]:
        return [{"params": problem.model[1].parameters(), "adam": True}, {"params": problem.model[0].bias, "lr": 0.01}]

    optimizer = TNGD(mlp.model, mlp.criterion, session, analog_time=500.0, groups=groups(mlp), **options)
    train(mlp, optimizer, 3)
    train(other, NGD(other.model, other.criterion, groups=groups(other), **options), 3)
    torch.testing.assert_close(flat(mlp.model), flat(other.model), rtol=1e-4, atol=1e-5)
    assert optimizer.last_reading is not None
    assert len(optimizer.last_reading.value) == flat(mlp.model).numel() - 10


def test_a_capture_of_some_parameters_has_their_columns(mlp: Problem) -> None:
    everything = Capture(mlp.model, mlp.criterion)
    chosen = [mlp.model[3].weight, mlp.model[0].bias]
    some = Capture(mlp.model, mlp.criterion, parameters=chosen)
    mlp.criterion(mlp.model(mlp.inputs), mlp.targets)
    columns = torch.cat([torch.arange(30, 35), torch.arange(45, 60)])  # 0.bias, then 3.weight
    a, b = everything.operator.dense(), some.operator.dense()
    torch.testing.assert_close(b.T @ b, (a.T @ a)[columns][:, columns])
    with pytest.raises(ValueError, match=r"of shapes \[\(2,\)\], which the model does not have"):
        Capture(mlp.model, mlp.criterion, parameters=[nn.Parameter(torch.zeros(2))])


def test_a_capture_that_is_paused_sees_nothing(mlp: Problem) -> None:
    operators: list[Any] = []
    capture = Capture(mlp.model, mlp.criterion, on_operator=operators.append)
    capture.paused = True
    mlp.criterion(mlp.model(mlp.inputs), mlp.targets).backward()
    assert operators == []
    with pytest.raises(RuntimeError, match="no training forward pass with a loss has been captured"):
        capture.operator_of_gradients()
    capture.paused = False
    mlp.criterion(mlp.model(mlp.inputs), mlp.targets).backward()
    assert operators == [capture.operator_of_gradients()]


def test_matrices_in_full_are_of_the_natural_parameters_only() -> None:
    model = nn.Sequential(nn.Linear(3, 4000), nn.Linear(4000, 2))
    groups = [{"params": model[0].parameters(), "adam": True}]
    NGD(model, nn.CrossEntropyLoss(), lr=1.0, damping=0.1, groups=groups, solver=solve_dense)  # of 24,002
    model, criterion = nn.Linear(12_000, 1), nn.MSELoss()
    with pytest.raises(ValueError, match="12001 parameters in full takes"):
        NGD(model, criterion, lr=1.0, damping=0.1, solver=solve_dense)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            lambda m: [{"params": m[0].parameters(), "dampng": 0.1}],
            "group 1 has 'dampng'; a group like it may have 'adam', 'lr', 'momentum', 'weight_decay' of its own",
        ),
        (
            lambda m: [{"params": m[0].parameters(), "damping": 0.1}],
            "group 1 has 'damping'; .* all else is the optimizer's",
        ),
        (lambda m: [{"params": m[0].parameters(), "betas": (0.9, 0.9)}], "group 1 has 'betas'"),
        (
            lambda m: [{"params": m[0].parameters(), "adam": True, "momentum": 0.9}],
            "group 1 has 'momentum'; a group like it may have 'adam', 'betas'",
        ),
        (
            lambda m: [{"params": m[0].parameters()}, {"params": [m[0].bias]}],
            r"parameter '0\.bias' is named twice",
        ),
        (
            lambda m: [{"params": [nn.Parameter(torch.zeros(7))]}],
            r"group 1 names a tensor of shape \(7,\) that is not a parameter of the model",
        ),
        (
            lambda m: [{"params": m.parameters(), "adam": True}],
            r"all parameters are left to Adam; use torch\.optim\.Adam",
        ),
        (lambda m: [{"lr": 0.1}], "group 1 has no 'params'"),
        (
            lambda m: [{"params": [m[0].bias]}, {"params": [m[0].weight], "lr": -0.5}],
            r"Invalid lr of group 2: -0\.5; it must be at least 0",
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(mlp: Problem, groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _optimizer(mlp, groups(mlp.model))
    assert not count_hooks(mlp.model)


def test_frozen_parameters_in_a_group_are_left_out(mlp: Problem) -> None:
    other = copy.deepcopy(mlp)
    for problem in (mlp, other):
        problem.model[0].bias.requires_grad_(False)
    found = _moves(mlp, _optimizer(mlp, [{"params": mlp.model[0].named_parameters(), "lr": 0.2}]))
    plain = _moves(other, _optimizer(other, None))
    for move, alone, factor in zip(found, plain, [2.0, 0.0, 1.0, 1.0, 1.0, 1.0], strict=True):
        torch.testing.assert_close(move, factor * alone, rtol=1e-4, atol=1e-7)


def test_a_parameter_unfrozen_later_is_not_silently_left_behind(mlp: Problem) -> None:
    mlp.model[0].bias.requires_grad_(False)
    optimizer = _optimizer(mlp, None)
    train(mlp, optimizer, 1)
    mlp.model[0].bias.requires_grad_(True)
    before = flat(mlp.model)
    with pytest.raises(RuntimeError, match=r"'0\.bias' was frozen when .* make a new optimizer"):
        train(mlp, optimizer, 1)
    torch.testing.assert_close(flat(mlp.model), before, rtol=0, atol=0)
    optimizer.close()
    train(mlp, _optimizer(mlp, None), 1)


def test_a_layer_frozen_later_stays_where_it_is(mlp: Problem) -> None:
    optimizer = _optimizer(mlp, None)
    train(mlp, optimizer, 1)
    optimizer.zero_grad()
    mlp.model[0].requires_grad_(False)
    frozen, others = flat(mlp.model[0]), flat(mlp.model)
    train(mlp, optimizer, 1)
    assert torch.equal(flat(mlp.model[0]), frozen)
    assert not torch.equal(flat(mlp.model), others)


def test_clipped_gradients_are_what_is_solved_for(mlp: Problem) -> None:
    optimizer = _optimizer(mlp, None)
    mlp.criterion(mlp.model(mlp.inputs), mlp.targets).backward()
    norm = nn.utils.clip_grad_norm_(mlp.model.parameters(), 0.01)
    assert norm > 0.1
    clipped = torch.cat([p.grad.flatten() for p in mlp.model.parameters() if p.grad is not None])
    expected = flat(mlp.model) - 0.1 * solve_dense(optimizer.capture.operator, clipped, 0.1)[0].float()
    optimizer.step()
    torch.testing.assert_close(flat(mlp.model), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "Invalid model: a generator; give the module, not its parameters"),
        ({"criterion": lambda z, y: z.sum()}, "Invalid criterion: a function; give a module"),
        ({"groups": {"params": []}}, "Invalid groups: they must be a list of dictionaries"),
        ({"groups": [nn.Parameter(torch.zeros(2))]}, "Invalid groups: they must be a list of dictionaries"),
        ({"momentun": 0.9}, r"NGD\(\) got an unexpected keyword argument 'momentun'"),
    ],
)
def test_what_people_give_by_mistake_is_refused(mlp: Problem, change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"model": mlp.model, "criterion": mlp.criterion, "lr": 1.0, "damping": 0.1, **change}
    options["model"] = options["model"] or mlp.model.parameters()
    with pytest.raises(TypeError, match=message):
        NGD(**options)
    assert not count_hooks(mlp.model)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_an_optimizer_is_not_copied_with_half_of_what_it_is(mlp: Problem, copied: Any) -> None:
    with pytest.raises(TypeError, match=r"NGD is hooked to its model .* other\.load_state_dict"):
        copied(_optimizer(mlp, None))


def test_groups_may_name_all_parameters(mlp: Problem) -> None:
    """As in every recipe without weight decay on biases; the first group, with the damping, is empty then."""
    other = copy.deepcopy(mlp)
    matrices, rest = ([p for p in mlp.model.parameters() if (p.dim() > 1) == large] for large in (True, False))
    optimizer = _optimizer(mlp, [{"params": matrices, "weight_decay": 0.1}, {"params": rest}], momentum=0.9)
    plain = _optimizer(other, [{"params": [p for p in other.model.parameters() if p.dim() > 1], "weight_decay": 0.1}])
    plain.param_groups[0]["momentum"] = plain.param_groups[1]["momentum"] = 0.9
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(one, 0.5, total_steps=5) for one in (optimizer, plain)]
    for _ in range(3):
        train(mlp, optimizer, 1)
        train(other, plain, 1)
        for scheduler in schedulers:
            scheduler.step()
    torch.testing.assert_close(flat(mlp.model), flat(other.model), rtol=0, atol=0)


def test_parameters_in_bfloat16_are_trained_through_a_device(mlp: Problem, session: Session) -> None:
    model, inputs = mlp.model.bfloat16(), mlp.inputs.bfloat16()
    problem = Problem(model, mlp.criterion, inputs, mlp.targets)
    optimizer = TNGD(model, mlp.criterion, session, lr=0.3, damping=0.1, analog_time=10.0, momentum=0.5)
    losses = train(problem, optimizer, 8)
    assert losses[-1] < losses[0] / 2
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
