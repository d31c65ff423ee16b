"""What is captured is the curvature, and nothing but the curvature."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from host_client.curvature import Capture, Kind
from spu_link.operators import Conv2dRows, LayerRows, LinearRows, Rows
from tests.host_client.curvature.oracle import factor

TARGETS = torch.tensor([0, 1, 2, 0])

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


@given(
    st.random_module(),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(2, 5),
    st.integers(1, 4),
    st.booleans(),
)
def test_any_stack_of_linear_layers_has_the_rows_of_its_dense_jacobian(
    seed: object, widths: list[int], classes: int, b: int, bias: bool
) -> None:
    layers: list[nn.Module] = []
    for d_in, d_out in zip(widths, [*widths[1:], classes], strict=True):
        layers += [nn.Linear(d_in, d_out, bias=bias), nn.Softplus()]
    model = nn.Sequential(*layers).double()
    capture = Capture(model, nn.CrossEntropyLoss())
    logits = model(torch.randn(b, widths[0], dtype=torch.float64))
    capture.criterion(logits, torch.zeros(b, dtype=torch.long))
    expected = factor(logits, list(model.parameters()))
    torch.testing.assert_close(capture.operator.dense(), expected, rtol=1e-10, atol=1e-12)


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


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference"])
def test_other_forward_passes_capture_nothing(mode: str) -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    with {"eval": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
        model.train(mode != "eval")
        _loss(capture)
    with pytest.raises(RuntimeError, match=r"no training forward pass.*model\.train\(\)"):
        capture.operator  # noqa: B018


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
    for module in (*model.modules(), criterion):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    model(torch.randn(4, 5))
    with pytest.raises(RuntimeError, match="no training forward pass"):
        capture.operator  # noqa: B018
    capture.close()


def test_the_model_does_not_keep_its_capture() -> None:
    model, criterion = _mlp(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    model(torch.randn(4, 5))
    del capture
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), criterion))


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
    """A network that tells how many of its graphs are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.tokens: list[weakref.ref[Token]] = []
        self.error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        token = Token()
        self.tokens.append(weakref.ref(token))
        hidden = Marked.apply(self.first(x), token)
        if self.error is not None:
            raise self.error
        return self.last(hidden)

    def alive(self) -> int:
        return sum(token() is not None for token in self.tokens)


def test_no_graph_outlives_its_logits() -> None:
    model, criterion = Marking(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    gc.disable()  # what is let go must go by itself
    try:
        for _ in range(3):
            loss = criterion(model(torch.randn(4, 5)), TARGETS)
            loss.backward()
            assert capture.operator_of_gradients() is capture.operator
            capture.forget_gradients()
            assert model.alive() == 1
            del loss
            assert model.alive() == 0
    finally:
        gc.enable()


def test_a_forward_pass_that_fails_leaves_the_next_one_unharmed() -> None:
    model = Marking()
    capture = Capture(model, nn.CrossEntropyLoss())
    model.error = ArithmeticError()
    with pytest.raises(ArithmeticError):
        model(torch.randn(4, 5))
    model.error = None
    _loss(capture)
    assert capture.operator.shape[0] == 8
    gc.collect()
    assert model.alive() == 0


def test_old_operators_are_freed() -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    _loss(capture)
    old = weakref.ref(capture.operator)
    model(torch.randn(4, 5))
    assert old() is None


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


def test_another_criterion_leaves_no_operator() -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    nn.functional.cross_entropy(model(torch.randn(4, 5)), TARGETS).backward()
    with pytest.raises(RuntimeError, match="call the criterion that the optimizer was given"):
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
    """What a GradScaler tells."""

    def get_scale(self) -> float:
        """A scale."""
        return 1024.0


def test_factors_of_several_passes_are_seen_relative_to_the_scale() -> None:
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
    with pytest.raises(RuntimeError, match=r"factors \[1024\.0, 1024\.0\]; give the optimizer the grad_scaler"):
        capture.operator_of_gradients()


def test_operators_are_handed_over_as_soon_as_they_are_complete() -> None:
    early: list[LayerRows] = []
    capture = Capture(_mlp(), nn.CrossEntropyLoss(), on_operator=early.append)
    _loss(capture)
    assert early == [capture.operator]


def test_an_interrupted_pass_is_over_with_the_next_one() -> None:
    model = Marking()
    capture = Capture(model, nn.CrossEntropyLoss())
    model.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(4, 5))
    model.error = None
    _loss(capture)
    assert capture.operator.shape[0] == 8
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize(("curvature", "rows"), [("exact", 8), ("mc", 12), ("empirical", 4)])
def test_kinds_of_curvature(curvature: Kind, rows: int) -> None:
    capture = Capture(_mlp(), nn.CrossEntropyLoss(), curvature=curvature, samples=3)
    _loss(capture)
    assert capture.operator.shape[0] == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [({"curvature": "fisher"}, "Invalid curvature: 'fisher'"), ({"samples": 0}, "Invalid samples: 0")],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Capture(_mlp(), nn.CrossEntropyLoss(), **options)
