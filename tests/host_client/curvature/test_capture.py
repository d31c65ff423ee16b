"""What is captured is the curvature, and nothing but the curvature."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from host_client.curvature import Capture
from spu_link.operators import Conv2dRows, LinearRows, Rows
from tests.cases import Case
from tests.host_client.curvature.oracle import factor

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_rows_are_those_of_the_dense_jacobian(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    problem = case.problem(dtype)
    capture = Capture(problem.model, problem.criterion)
    logits = problem.model(problem.inputs)
    expected = factor(logits, problem.trained, reduction=case.reduction)
    found = capture.operator.dense()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_curvature_is_the_generalised_gauss_newton_matrix(case: Case) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.model(problem.inputs)
    operator = capture.operator
    capture.close()
    ggn = curvlinops.GGNLinearOperator(
        problem.model,
        problem.criterion,
        problem.trained,
        [(problem.inputs, problem.targets)],
        check_deterministic=False,
    )
    identity = torch.eye(operator.parameters, dtype=torch.float64)
    torch.testing.assert_close(operator.curvature(identity), ggn @ identity, rtol=1e-10, atol=1e-12)


def test_columns_are_the_trained_parameters_in_order(case: Case) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    expected = [(path, p) for path, p in problem.model.named_parameters() if p.requires_grad]
    found = capture.parameters()
    assert [path for path, _ in found] == [path for path, _ in expected]
    assert all(a is b for (_, a), (_, b) in zip(found, expected, strict=True))


def test_no_cotangent_row_is_sent_that_vanishes(case: Case) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.model(problem.inputs)
    assert capture.operator.shape == (case.batch * (case.classes - 1), sum(p.numel() for p in problem.trained))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Options of a convolution, and an image it fits."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    kernel, dilation, padding = draw(pair), draw(pair), draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    extent = [size + draw(st.integers(0, 4)) for size in least]
    options = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": kernel,
        "stride": draw(pair),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    return options, (options["in_channels"], extent[0], extent[1])


@settings(deadline=None)
@given(convolutions(), st.integers(1, 3))
def test_any_convolution_has_the_rows_of_its_dense_jacobian(
    drawn: tuple[dict[str, Any], tuple[int, int, int]], b: int
) -> None:
    options, image = drawn
    convolution = nn.Conv2d(**options)
    features = convolution(torch.zeros(1, *image)).numel()
    model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3)).double()
    capture = Capture(model, nn.CrossEntropyLoss())
    logits = model(torch.randn(b, *image, dtype=torch.float64))
    expected = factor(logits, list(model.parameters()))
    torch.testing.assert_close(capture.operator.dense(), expected, rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(2, 5), st.integers(1, 4), st.booleans())
def test_any_stack_of_linear_layers_has_the_rows_of_its_dense_jacobian(
    widths: list[int], classes: int, b: int, bias: bool
) -> None:
    layers: list[nn.Module] = []
    for d_in, d_out in zip(widths, [*widths[1:], classes], strict=True):
        layers += [nn.Linear(d_in, d_out, bias=bias), nn.Softplus()]
    model = nn.Sequential(*layers).double()
    capture = Capture(model, nn.CrossEntropyLoss())
    logits = model(torch.randn(b, widths[0], dtype=torch.float64))
    expected = factor(logits, list(model.parameters()))
    torch.testing.assert_close(capture.operator.dense(), expected, rtol=1e-10, atol=1e-12)


def test_wide_layers_are_passed_column_by_column_with_the_same_result(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.model(problem.inputs)
    together = capture.operator.dense()
    monkeypatch.setattr("host_client.curvature.cotangents.PASS_ELEMENTS", 1)
    problem.model(problem.inputs)
    torch.testing.assert_close(capture.operator.dense(), together, rtol=1e-12, atol=1e-14)


def test_dropout_is_captured_as_it_fell() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    capture = Capture(model, nn.CrossEntropyLoss())
    logits = model(torch.randn(4, 5, dtype=torch.float64))
    torch.testing.assert_close(capture.operator.dense(), factor(logits, list(model.parameters())))


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
    model(torch.randn(8, 1, 28, 28))
    operator = capture.operator
    assert [type(layer) for layer in operator.layers] == [Rows, Conv2dRows, LinearRows]
    in_full = operator.shape[0] * operator.shape[1] * 4
    assert operator.nbytes < in_full / 7


def test_gradients_are_those_without_capture(case: Case) -> None:
    problem = case.problem()
    loss = problem.criterion(problem.model(problem.inputs), problem.targets)
    expected = torch.autograd.grad(loss, problem.trained)
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    for parameter, gradient in zip(problem.trained, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)
    capture.close()


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference"])
def test_other_forward_passes_capture_nothing(mode: str) -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    with {"eval": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
        model.train(mode != "eval")
        model(torch.randn(4, 5))
    with pytest.raises(RuntimeError, match=r"no training forward pass.*model\.train\(\)"):
        capture.operator  # noqa: B018


def test_evaluation_between_leaves_the_captured_operator() -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    model(torch.randn(4, 5))
    operator = capture.operator
    with torch.no_grad():
        model(torch.randn(7, 5))
    model.eval()(torch.randn(7, 5))
    assert capture.operator is operator


def test_a_layer_called_on_its_own_is_not_captured() -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    model[0](torch.randn(4, 5))
    model(torch.randn(4, 5))
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
    model(torch.randn(4, 5))
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
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        token = Token()
        self.tokens.append(weakref.ref(token))
        hidden = Marked.apply(self.first(x), token)
        if self.fails:
            raise ArithmeticError
        return self.last(hidden)

    def alive(self) -> int:
        return sum(token() is not None for token in self.tokens)


def test_no_graph_outlives_its_logits() -> None:
    model, criterion = Marking(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    gc.disable()  # what is let go must go by itself
    try:
        for _ in range(3):
            loss = criterion(model(torch.randn(4, 5)), torch.tensor([0, 1, 2, 0]))
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
    model.fails = True
    with pytest.raises(ArithmeticError):
        model(torch.randn(4, 5))
    model.fails = False
    model(torch.randn(4, 5))
    assert capture.operator.shape[0] == 8
    gc.collect()
    assert model.alive() == 0


def test_old_operators_are_freed() -> None:
    model = _mlp()
    capture = Capture(model, nn.CrossEntropyLoss())
    model(torch.randn(4, 5))
    old = weakref.ref(capture.operator)
    model(torch.randn(4, 5))
    assert old() is None


def test_the_gradients_name_the_forward_pass_they_came_through() -> None:
    model, criterion = _mlp(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    targets = torch.tensor([0, 1, 2, 0])
    with pytest.raises(RuntimeError, match="no training forward pass"):
        capture.operator_of_gradients()
    first = model(torch.randn(4, 5))
    operator = capture.operator
    second = model(torch.randn(4, 5))
    with pytest.raises(RuntimeError, match=r"loss\.backward\(\)"):
        capture.operator_of_gradients()
    criterion(first, targets).backward()
    assert capture.operator_of_gradients() is operator
    criterion(second, targets).backward()
    with pytest.raises(RuntimeError, match=r"2 backward passes .* zero_grad\(\)"):
        capture.operator_of_gradients()
    capture.forget_gradients()
    with pytest.raises(RuntimeError, match=r"loss\.backward\(\)"):
        capture.operator_of_gradients()
