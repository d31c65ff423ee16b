"""What is captured is the curvature, and nothing but the curvature."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client.curvature import Capture, Kind
from spu_link.operators import Conv2dRows, LayerRows, LinearRows, Rows
from tests.cases import Case
from tests.torch_state import count_hooks, function_modes

TARGETS = torch.tensor([0, 1, 2, 0])

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def test_each_layer_goes_in_the_form_with_the_fewest_bytes() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 49, 10),
    )
    capture = Capture(model, nn.CrossEntropyLoss())
    capture.criterion(model(torch.randn(8, 1, 28, 28)), torch.arange(8))
    operator = capture.operator
    assert [type(layer) for layer in operator.layers] == [Rows, Conv2dRows, LinearRows]
    in_full = operator.shape[0] * operator.shape[1] * 4
    assert operator.nbytes < in_full / 7


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def _loss(capture: Capture, b: int = 4) -> Tensor:
    """One pass of a training loop, up to the loss."""
    loss: Tensor = capture.criterion(capture.model(torch.randn(b, 5)), torch.arange(b) % 3)
    return loss


def test_evaluation_between_leaves_the_captured_operator() -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    _loss(capture)
    operator = capture.operator
    with torch.no_grad():
        model(torch.randn(7, 5))
    model.eval()(torch.randn(7, 5))
    assert capture.operator is operator


def test_a_layer_called_on_its_own_is_not_captured() -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    model[0](torch.randn(4, 5))
    _loss(capture)
    assert capture.operator.shape[0] == 8


def test_close_removes_every_hook() -> None:
    model, criterion = _mlp(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    capture.close()
    assert not count_hooks(model, criterion)
    model(torch.randn(4, 5))
    with pytest.raises(RuntimeError, match="no training forward pass"):
        capture.operator  # noqa: B018
    capture.close()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_is_not_captured(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    _loss(capture)
    operator = capture.operator
    duplicate(model)(torch.randn(9, 5))
    assert capture.operator is operator


class Token:
    """Something a weak reference can point at."""


class Marked(torch.autograd.Function):
    """The identity, whose place in the graph holds a token."""

    @staticmethod
    def forward(x: Tensor, token: Token) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Token], output: Tensor) -> None:
        ctx.token = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Marking(nn.Module):
    """A network that counts how many of its graphs are alive.

    Args:
        followed: whether a hook of a node holds the token, or a function of one's own, through which samples are not
            followed.
    """

    def __init__(self, followed: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.tokens: list[weakref.ref[Token]] = []
        self.followed = followed
        self.error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        token = Token()
        self.tokens.append(weakref.ref(token))
        hidden = self.first(x)
        if self.followed:
            hidden.grad_fn.register_hook(lambda *_, token=token: None)
        else:
            hidden = Marked.apply(hidden, token)
        if self.error is not None:
            raise self.error
        return self.last(hidden.tanh())

    def alive(self) -> int:
        return sum(token() is not None for token in self.tokens)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without a collector of cycles: what is released must go by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


both = pytest.mark.parametrize("followed", [True, False], ids=["samples apart", "unpacked"])
unpacked = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


@both
@unpacked
@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("differentiated", [True, False])
def test_no_graph_outlives_its_loss(followed: bool, differentiated: bool) -> None:
    model, criterion = Marking(followed), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    for _ in range(3):
        loss = criterion(model(torch.randn(4, 5)), TARGETS)
        if differentiated:
            loss.backward()
            assert capture.operator_of_gradients() is capture.operator
            capture.forget_gradients()
        assert model.alive() == 1
        del loss
        assert model.alive() == 0
        assert capture.operator.shape[0] == 8


@unpacked
@pytest.mark.usefixtures("no_collector")
@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize("curvature", ["exact", "empirical"])
def test_no_operator_holds_the_graph_that_it_is_read_from(case: Case, curvature: Kind) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion, curvature=curvature)
    outputs = problem.outputs()
    token = Token()
    alive = weakref.ref(token)
    for node in _nodes(outputs.grad_fn):
        node.register_hook(lambda *_, token=token: None)
    loss = problem.criterion(outputs, problem.targets)
    del token, node, outputs
    assert alive() is not None
    del loss
    assert alive() is None
    assert capture.operator.shape[1] == sum(p.numel() for p in problem.trained)


def _nodes(root: Any) -> list[Any]:
    """The functions behind a tensor, without leaves, which outlive it."""
    todo, found = [root], []
    while todo:
        node = todo.pop()
        if node is not None and node not in found and "AccumulateGrad" not in node.name():
            found.append(node)
            todo += [argument for argument, _ in node.next_functions]
    return found


@both
@unpacked
@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), F.cross_entropy, None], ids=["module", "function", "none"]
)
def test_a_forward_pass_that_fails_leaves_the_next_one_unharmed(
    criterion: Any, error: type[BaseException], followed: bool
) -> None:
    model = Marking(followed)
    if criterion is None:
        last, criterion = model.last, F.cross_entropy
        model.last = _WithLoss(last)  # type: ignore[assignment]
        capture = Capture(model, None)
        call: Callable[[], Tensor] = lambda: model(torch.randn(4, 5))  # noqa: E731
    else:
        capture = Capture(model, criterion)
        call = lambda: criterion(model(torch.randn(4, 5)), TARGETS)  # noqa: E731
    for _ in range(2):
        model.error = error()
        with pytest.raises(error):
            call()
        model.error = None
        call().backward()
        assert capture.operator_of_gradients().shape[0] == 8
        capture.forget_gradients()
        model.zero_grad()
    gc.collect()
    assert model.alive() == 0
    capture.close()
    assert not function_modes()


class _WithLoss(nn.Module):
    """A last layer that returns the loss of its logits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.cross_entropy(self.layer(x), TARGETS)


@pytest.mark.usefixtures("no_collector")
def test_old_operators_are_freed_with_the_next_loss() -> None:
    capture = Capture(_mlp(), nn.CrossEntropyLoss())
    _loss(capture)
    old = weakref.ref(capture.operator)
    _loss(capture)
    assert old() is None


@pytest.mark.usefixtures("no_collector")
def test_the_operator_of_a_loss_is_freed_with_its_graph() -> None:
    capture = Capture(_mlp(), nn.CrossEntropyLoss())
    loss = _loss(capture)
    old = weakref.ref(capture.operator)
    _loss(capture)
    assert old() is not None
    del loss
    assert old() is None


@pytest.mark.usefixtures("no_collector")
def test_the_operator_of_a_loss_is_freed_when_a_step_has_used_it() -> None:
    """As where losses are collected for a plot, with their graphs."""
    capture = Capture(_mlp(), nn.CrossEntropyLoss())
    losses, operators = [], []
    for _ in range(3):
        losses.append(_loss(capture))
        losses[-1].backward(retain_graph=True)
        operators.append(weakref.ref(capture.operator_of_gradients()))
        capture.forget_gradients()
        capture.model.zero_grad()
        assert [operator() is not None for operator in operators[:-1]] == [False] * (len(operators) - 1)
    losses[0].backward()
    with pytest.raises(RuntimeError, match="a loss from before the last step was differentiated again"):
        capture.operator_of_gradients()


def test_the_gradients_name_the_loss_they_came_from() -> None:
    model, criterion = _mlp(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    with pytest.raises(RuntimeError, match="no training forward pass"):
        capture.operator_of_gradients()
    a, b = model(torch.randn(4, 5)), model(torch.randn(4, 5))
    with pytest.raises(RuntimeError, match="call the criterion that the optimizer was given"):
        capture.operator_of_gradients()
    first = criterion(a, TARGETS)
    operator = capture.operator
    second = criterion(b, TARGETS)
    with pytest.raises(RuntimeError, match=r"loss\.backward\(\)"):
        capture.operator_of_gradients()
    first.backward()
    assert capture.operator_of_gradients() is operator
    second.backward()
    both = capture.operator_of_gradients().dense()
    expected = operator.dense().T @ operator.dense() + capture.operator.dense().T @ capture.operator.dense()
    torch.testing.assert_close(both.T @ both, expected)
    capture.forget_gradients()
    with pytest.raises(RuntimeError, match=r"loss\.backward\(\)"):
        capture.operator_of_gradients()


def test_gradients_set_to_none_by_the_model_are_forgotten() -> None:
    """As after a step that a GradScaler has skipped."""
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    _loss(capture).backward()
    model.zero_grad()
    _loss(capture).backward()
    assert capture.operator_of_gradients() is capture.operator


class Scaler:
    """The scale of a GradScaler."""

    def get_scale(self) -> float:
        """A scale."""
        return 1024.0


def test_factors_of_several_passes_are_those_without_the_scaler() -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss(), grad_scaler=Scaler())
    parts = []
    for _ in range(2):
        (_loss(capture) / 2 * 1024).backward()
        parts.append(capture.operator.dense())
    a = capture.operator_of_gradients().dense()
    torch.testing.assert_close(a.T @ a, sum(part.T @ part for part in parts) / 2)
    capture.close()
    capture = Capture(model, nn.CrossEntropyLoss())
    model.zero_grad()
    for _ in range(2):
        (_loss(capture) * 1024).backward()
    with pytest.raises(RuntimeError, match=r"a factor of 1024, .*grad_scaler="):
        capture.operator_of_gradients()


def test_operators_are_passed_on_as_soon_as_they_are_complete() -> None:
    early: list[LayerRows] = []
    capture = Capture(_mlp(), nn.CrossEntropyLoss(), on_operator=early.append)
    _loss(capture)
    assert early == [capture.operator]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"curvature": "exact"}, 8),
        ({"curvature": "mc", "samples": 3}, 12),
        ({"curvature": "mc"}, 4),
        ({"curvature": "empirical"}, 4),
    ],
)
def test_kinds_of_curvature(options: dict[str, Any], rows: int) -> None:
    capture = Capture(_mlp(), nn.CrossEntropyLoss(), **options)
    _loss(capture)
    assert capture.operator.shape[0] == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "kfac"}, r"'kfac'.*'exact'.*'mc'.*'empirical'"),
        ({"samples": 0}, "Invalid samples: 0"),
        ({"samples": -1}, "Invalid samples: -1"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Capture(_mlp(), nn.CrossEntropyLoss(), **options)
