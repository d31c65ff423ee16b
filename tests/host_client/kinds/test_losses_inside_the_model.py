"""Kind I: the model computes its loss itself, as language models do; the criterion is None."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import NGD, TNGD, Session
from host_client.curvature import Capture
from tests import public
from tests.host_client.curvature.oracle import assert_same_curvature
from tests.host_client.kinds.reference import assert_same, captured, double, gauss_newton

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")

VOCABULARY = 5


class Block(nn.Module):
    """Causal attention by a head, and a feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, s, width)."""
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0])
        x = x + self.down(F.gelu(self.up(self.second(x))))
        return x


class TinyGPT(nn.Module):
    """As nanoGPT: ``logits, loss = model(x, y)``, the output tied to the embedding."""

    def __init__(self, ignored: int = -1) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 4), nn.Embedding(4, 4)
        self.block, self.norm = Block(4), nn.LayerNorm(4)
        self.head = nn.Linear(4, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        self.ignored = ignored

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits, and the loss if there are targets."""
        h = self.block(self.tokens(x) + self.positions(torch.arange(x.shape[1])))
        logits = self.head(self.norm(h))
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, VOCABULARY), y.view(-1), ignore_index=self.ignored)


class Regression(nn.Module):
    """A model that gives out its loss alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """A scalar."""
        return F.mse_loss(self.body(x), t)


class Criterion(nn.Module):
    """A model that holds its criterion, and gives out a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.criterion = nn.Linear(4, 3), nn.BCEWithLogitsLoss()

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.body(x)
        return {"loss": self.criterion(logits, t), "logits": logits}


def _tokens(samples: int, length: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(samples * length).view(samples, length) * 3 % VOCABULARY
    y = (x * 2 + 1) % VOCABULARY
    y[0, 1] = -1
    return x, y


def _cross_entropy(logits: Tensor, y: Tensor, ignored: int) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1), ignore_index=ignored)


def test_a_tiny_gpt_that_returns_logits_and_loss() -> None:
    model = TinyGPT().double()
    twin, capture = copy.deepcopy(model), Capture(model, None)  # type: ignore[arg-type]
    for samples, length in ((3, 4), (2, 3)):
        x, y = _tokens(samples, length)
        _, loss = model(x, y)
        logits, _ = twin(x)
        expected = gauss_newton([(logits, lambda z, y=y: _cross_entropy(z, y, -1))], list(twin.parameters()))
        assert_same(captured(capture, loss), expected, model)


def test_parts_of_a_loss_inside_the_model_add_up() -> None:
    """Micro-batches, each divided by their number, before one step."""
    model = TinyGPT().double()
    twin, capture = copy.deepcopy(model), Capture(model, None)  # type: ignore[arg-type]
    expected = torch.zeros(())
    for shift in range(2):
        x, y = _tokens(2, 3)
        x = (x + shift) % VOCABULARY
        (model(x, y)[1] / 2).backward()
        term = (twin(x)[0], lambda z, y=y: _cross_entropy(z, y, -1) / 2)
        expected = expected + gauss_newton([term], list(twin.parameters()))
    a = capture.operator_of_gradients().dense()
    assert_same(a.T @ a, expected, model)


def test_a_language_model_of_transformers() -> None:
    """``model(input_ids, labels=…).loss``, which shifts the labels by itself and has its logits in float32."""
    model: Any = public.gpt2().double()
    twin, capture = copy.deepcopy(model), Capture(model, None)  # type: ignore[arg-type]
    x = torch.arange(12).view(3, 4) * 3 % 7
    labels = x.clone()
    labels[0, 2] = -100
    found = captured(capture, model(input_ids=x, labels=labels).loss)
    z = twin(input_ids=x).logits[:, :-1]
    expected = gauss_newton([(z, lambda z: _cross_entropy(z, labels[:, 1:], -100))], list(twin.parameters()))
    assert_same_curvature(found, expected, [p.numel() for p in model.parameters()], 1e-4)


def test_a_classifier_of_transformers() -> None:
    model: Any = public.bert().double()
    twin, capture = copy.deepcopy(model), Capture(model, None)  # type: ignore[arg-type]
    x, y = torch.arange(12).view(3, 4) * 5 % 11, torch.tensor([0, 1, 2])
    found = captured(capture, model(input_ids=x, labels=y).loss)
    expected = gauss_newton([(twin(input_ids=x).logits, lambda z: F.cross_entropy(z, y))], list(twin.parameters()))
    assert_same_curvature(found, expected, [p.numel() for p in model.parameters()], 1e-4)


@pytest.mark.parametrize("function", [False, True], ids=["found", "named"])
def test_a_model_that_returns_its_loss_alone(function: bool) -> None:
    model, x, t = Regression().double(), double(6, 4), double(6, 2, seed=3)
    twin, capture = copy.deepcopy(model), Capture(model, F.mse_loss if function else None)  # type: ignore[arg-type]
    expected = gauss_newton([(twin.body(x), lambda z: F.mse_loss(z, t))], list(twin.parameters()))
    assert_same(captured(capture, model(x, t)), expected, model)


def test_a_model_that_holds_its_criterion() -> None:
    model, x, t = Criterion().double(), double(6, 4), (double(6, 3, seed=3) > 0).double()
    twin, capture = copy.deepcopy(model), Capture(model, None)  # type: ignore[arg-type]
    expected = gauss_newton(
        [(twin.body(x), lambda z: F.binary_cross_entropy_with_logits(z, t))], list(twin.parameters())
    )
    assert_same(captured(capture, model(x, t)["loss"]), expected, model)


def test_steps_with_a_loss_inside_the_model(session: Session) -> None:
    for optimizer_of in (
        lambda m: NGD(m, None, lr=0.5, damping=0.1),  # type: ignore[arg-type]
        lambda m: TNGD(m, None, session, lr=0.5, damping=0.1, analog_time=50.0),  # type: ignore[arg-type]
    ):
        torch.manual_seed(0)
        model = TinyGPT()
        optimizer, (x, y) = optimizer_of(model), _tokens(3, 4)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            _, loss = model(x, y)
            assert loss is not None
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
