"""Parameters that are used more than once, in stretches, or by functions that nobody has made a rule for."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client.curvature import Capture, CurvatureFallback
from spu_link.operators import EmbeddingRows, LinearRows, Rows
from tests.host_client.curvature.oracle import factor

X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0])


class Model(nn.Module):
    """A network given as a function of two matrices, a vector and the input."""

    def __init__(self, function: Callable[["Model", Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(6, 5, dtype=torch.float64) / 2)
        self.v = nn.Parameter(torch.randn(3, 6, dtype=torch.float64) / 2)
        self.s = nn.Parameter(torch.randn(6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return self.function(self, x)


def _packed(m: Model, x: Tensor) -> Tensor:
    a, b = m.w.split([2, 4])
    return (torch.cat([F.linear(x, a).tanh(), F.linear(x * 2, b)], 1) * m.s) @ m.v.T


def _overlapping(m: Model, x: Tensor) -> Tensor:
    a, b = F.linear(x, m.w[:4]).tanh(), F.linear(x.square(), m.w[2:])
    return (torch.cat([a, b[:, :2]], 1) * m.s) @ m.v.T


def _twice(m: Model, x: Tensor) -> Tensor:
    return (F.linear(x, m.w).tanh() + F.linear(x.square(), m.w)) * m.s @ m.v.T


def _forwards_and_back(m: Model, x: Tensor) -> Tensor:
    hidden = F.linear(x, m.w).tanh() * m.s
    return F.linear(F.linear(hidden @ m.w, m.w), m.v)


class Double(torch.autograd.Function):
    """2 x, which no dispatch sees."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (_packed, [LinearRows, LinearRows, LinearRows, Rows]),
        (_overlapping, [Rows, LinearRows, Rows]),
        (_twice, [LinearRows, LinearRows, Rows]),
        (_forwards_and_back, [Rows, LinearRows, Rows]),
        (lambda m, x: F.linear(x @ m.w.T * m.s, m.v), [LinearRows, LinearRows, Rows]),
        (lambda m, x: F.linear(F.linear(x, m.w[[0, 1, 2, 3, 4, 5]]) * m.s, m.v), [Rows, LinearRows, Rows]),
        (lambda m, x: F.linear(F.linear(x, m.w) * m.s.exp(), m.v), [LinearRows, LinearRows, Rows]),
        (lambda m, x: F.linear(F.linear(x, m.w) + F.linear(x, Double.apply(m.w)) * m.s, m.v), [Rows, LinearRows, Rows]),
        (lambda m, x: F.linear(F.linear(x, m.w) / m.s, m.v), [LinearRows, LinearRows, Rows]),
    ],
)
def test_uses_are_summed(function: Callable[[Model, Tensor], Tensor], kinds: list[type]) -> None:
    model = Model(function)
    capture = Capture(model, nn.CrossEntropyLoss())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureFallback)
        logits = model(X)
        capture.criterion(logits, TARGETS)
    torch.testing.assert_close(capture.operator.dense(), factor(logits, list(model.parameters())))
    assert [type(block) for block in capture.operator.layers] == kinds


@pytest.mark.parametrize(
    ("function", "layer", "through"),
    [
        (lambda m, x: F.linear(F.linear(x, m.w) * m.s.exp(), m.v), "s", "Mul"),
        (lambda m, x: F.linear(F.linear(x, m.w) + F.linear(x, Double.apply(m.w)) * m.s, m.v), "w", "Mm"),
        (lambda m, x: F.linear(Double.apply(F.linear(x, m.w)), m.v), "w", "DoubleBackward"),
    ],
    ids=["function of a parameter", "function of one's own of a parameter", "function of one's own of activations"],
)
def test_rows_at_a_higher_cost_are_announced_once_with_the_function_and_a_way_out(
    function: Callable[[Model, Tensor], Tensor], layer: str, through: str
) -> None:
    model = Model(function)
    capture = Capture(model, nn.CrossEntropyLoss())
    said = rf"^'{layer}': samples are not followed through {through}, .* each column and sample .* freeze it or .* Adam"
    with pytest.warns(CurvatureFallback, match=said) as warned:
        capture.criterion(model(X), TARGETS)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    capture.criterion(model(X), TARGETS)  # without another warning, which would be an error


def test_one_warning_for_all_parameters_of_a_layer() -> None:
    model = Model(lambda m, x: F.linear(Double.apply(m.body(x)), m.v))  # type: ignore[operator]
    model.body = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 6)).double()
    capture = Capture(model, nn.CrossEntropyLoss())
    with pytest.warns(CurvatureFallback) as warned:
        capture.criterion(model(X), TARGETS)
    assert sorted(str(one.message).split("'")[1] for one in warned) == ["body.0", "body.1"]


def test_rows_by_autograd_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_client.curvature.walk.CHUNK_BYTES", 8 * 24 * 3)
    model = Model(lambda m, x: F.linear(F.linear(x, m.w) * m.s.exp(), m.v))
    capture = Capture(model, nn.CrossEntropyLoss())
    logits = model(X)
    with pytest.warns(CurvatureFallback):
        capture.criterion(logits, TARGETS)
    torch.testing.assert_close(capture.operator.dense(), factor(logits, list(model.parameters())))


class Positions(nn.Module):
    """Tokens and their positions, which are the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(40, 2), nn.Embedding(30, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))[None]
        out: Tensor = self.head(x.tanh().mean(1))
        return out


@pytest.mark.parametrize("tokens", [3, 4])
def test_position_tables_stay_factors(tokens: int) -> None:
    model = Positions().double()
    capture = Capture(model, nn.CrossEntropyLoss())
    logits = model(torch.randint(40, (4, tokens)))
    capture.criterion(logits, TARGETS)
    torch.testing.assert_close(capture.operator.dense(), factor(logits, list(model.parameters())))
    assert [type(block) for block in capture.operator.layers] == [EmbeddingRows, EmbeddingRows, LinearRows]


def test_an_embedding_with_sparse_gradients_has_the_same_rows() -> None:
    model = Positions().double()
    capture = Capture(model, nn.CrossEntropyLoss())
    ids = torch.randint(40, (4, 3))
    capture.criterion(model(ids), TARGETS)
    expected = capture.operator.dense()
    model.tokens.sparse = True
    capture.criterion(model(ids), TARGETS)
    torch.testing.assert_close(capture.operator.dense(), expected)


def test_one_column_of_a_transposed_matrix_stays_a_factor() -> None:
    """As `transformers` writes GPT-2's layers."""
    one = nn.Sequential(nn.Linear(5, 6), nn.Tanh()).double()
    weight = nn.Parameter(torch.randn(6, 3, dtype=torch.float64))
    bias = nn.Parameter(torch.randn(3, dtype=torch.float64))

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.weight, self.bias = one, weight, bias

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, self.body(x), self.weight)

    model = Transposed()
    capture = Capture(model, nn.CrossEntropyLoss(), curvature="mc")
    capture.criterion(model(X), TARGETS)
    assert [type(block) for block in capture.operator.layers] == [LinearRows, Rows, LinearRows]
