"""Kind H: parameters that a batch does not use have zero columns, and an optimizer leaves them where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from host_client import KFAC, NGD, TNGD, NGDWoodbury, Session
from host_client.curvature import Capture, UnsupportedLayer
from tests.host_client.kinds.experts import Experts, Weighted
from tests.host_client.kinds.reference import Term, assert_same, captured, classes, double, empirical, gauss_newton

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


class Dropped(nn.Module):
    """Layer drop: each residual block is left out in some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 3)

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weight in the loss."""
        for number, block in enumerate(self.blocks):
            if (turn + number) % 3:
                x = x + block(x).tanh()
        return [(self.head(x), 1.0)]


class Turns(nn.Module):
    """One body with a head for each task, by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 3) for _ in range(2))

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weight in the loss."""
        return [(self.heads[turn % 2](self.body(x).tanh()), 1.0)]


class Auxiliary(nn.Module):
    """A head on the hidden state with 0.4 of the weight, as in Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aux, self.second, self.head = (
            nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 5), nn.Linear(5, 3),
        )  # fmt: skip

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weights in the loss."""
        h = self.first(x).tanh()
        return [(self.head(self.second(h).tanh()), 1.0), (self.aux(h), 0.4)]


class Deep(nn.Module):
    """Deep supervision: a list of logits with weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weights in the loss."""
        out = []
        for block, head, weight in zip(self.blocks, self.heads, (0.25, 0.5, 1.0), strict=True):
            x = block(x).tanh()
            out.append((head(x), weight))
        return out


class Spare(nn.Module):
    """A module that is never called, one whose output nobody uses, and one that is called without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.unread, self.teacher = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 4)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weight in the loss."""
        _ = self.unread(x)
        with torch.no_grad():
            shift = self.teacher(x)
        return [(self.head((self.body(x) + shift).tanh()), 1.0)]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layer drop": Dropped,
    "an expert that is not called": Experts,
    "heads by turns": Turns,
    "auxiliary head": Auxiliary,
    "weighted list of outputs": Deep,
    "spare modules": Spare,
}


def _loss(criterion: nn.Module, outputs: Weighted, y: Tensor) -> Tensor:
    total: Tensor = sum(weight * criterion(z, y) for z, weight in outputs)  # type: ignore[assignment]
    return total


def _expected(twin: nn.Module, x: Tensor, y: Tensor, turn: int) -> Tensor:
    terms: list[Term] = [(z, lambda z, w=w: w * F.cross_entropy(z, y)) for z, w in twin(x, turn)]  # type: ignore[misc]
    return gauss_newton(terms, list(twin.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_what_a_batch_does_not_use_has_zero_columns(name: str) -> None:
    model = MODELS[name]().double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    for turn in range(3):
        x, y = double(6, 4, seed=turn), classes(6)
        f = captured(capture, _loss(criterion, model(x, turn), y))
        assert_same(f, _expected(twin, x, y, turn), model)


@pytest.mark.parametrize("name", ["layer drop", "an expert that is not called", "heads by turns", "spare modules"])
def test_gradients_of_each_sample_where_some_parameters_rest(name: str) -> None:
    model = MODELS[name]().double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature="empirical")
    for turn in range(3):
        x, y = double(6, 4, seed=turn), classes(6)
        ((z, _),) = twin(x, turn)
        expected = empirical(F.cross_entropy(z, y, reduction="none"), list(twin.parameters()), 6)
        assert_same(captured(capture, _loss(criterion, model(x, turn), y)), expected, model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", [NGD, NGDWoodbury])
def test_steps_are_the_dense_ones_and_leave_the_rest_alone(name: str, optimizer: type[NGD | NGDWoodbury]) -> None:
    model, criterion = MODELS[name]().double(), nn.CrossEntropyLoss()
    stepped = optimizer(model, criterion, lr=0.5, damping=0.1, weight_decay=0.1)
    for turn in range(3):
        twin, x, y = copy.deepcopy(model), double(6, 4, seed=turn), classes(6)
        twin.zero_grad()
        stepped.zero_grad()
        _loss(criterion, model(x, turn), y).backward()
        stepped.step()
        _loss(nn.CrossEntropyLoss(), twin(x, turn), y).backward()
        drive = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in twin.parameters()])
        f = _expected(twin, x, y, turn)
        step = torch.linalg.solve(f + 0.1 * torch.eye(len(f), dtype=f.dtype), drive)
        parts = step.split([p.numel() for p in twin.parameters()])
        for (path, after), before, part in zip(model.named_parameters(), twin.parameters(), parts, strict=True):
            if before.grad is None:
                assert torch.equal(after, before), f"{path} has no gradient and has moved"
            else:
                expected = before * (1 - 0.5 * 0.1) - 0.5 * part.view_as(before)
                torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-11)


def test_momentum_does_not_move_a_head_that_rests() -> None:
    model, criterion = Turns(), nn.CrossEntropyLoss()
    optimizer = NGDWoodbury(model, criterion, lr=0.1, damping=0.1, momentum=0.9)
    for turn in range(4):
        resting = copy.deepcopy(model.heads[(turn + 1) % 2])
        optimizer.zero_grad()
        _loss(criterion, model(double(6, 4, seed=turn).float(), turn), classes(6)).backward()
        optimizer.step()
        for before, after in zip(resting.parameters(), model.heads[(turn + 1) % 2].parameters(), strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["heads by turns", "layer drop"])
def test_a_device_solves_without_what_rests(name: str, session: Session) -> None:
    model, criterion = MODELS[name](), nn.CrossEntropyLoss()
    optimizer = TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=50.0)
    for turn in range(3):
        optimizer.zero_grad()
        _loss(criterion, model(double(6, 4, seed=turn).float(), turn), classes(6)).backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        for old, p in zip(before, model.parameters(), strict=True):
            assert p.isfinite().all()
            assert torch.equal(old, p) == (p.grad is None)


def test_kronecker_factors_of_the_layers_in_use() -> None:
    class Chosen(nn.Module):
        """One tensor in and one out, as K-FAC has it."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads, self.turn = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 3) for _ in range(2)), 0

        def forward(self, x: Tensor) -> Tensor:
            """Logits of the head whose turn it is."""
            logits: Tensor = self.heads[self.turn % 2](self.body(x).tanh())
            return logits

    model, criterion = Chosen(), nn.CrossEntropyLoss()
    optimizer = KFAC(model, criterion, lr=0.1, damping=0.1)
    for model.turn in range(4):
        optimizer.zero_grad()
        criterion(model(double(6, 4, seed=model.turn).float()), classes(6)).backward()
        before = copy.deepcopy(model)
        optimizer.step()
        acting, resting = model.turn % 2, (model.turn + 1) % 2
        assert torch.equal(before.heads[resting].weight, model.heads[resting].weight)  # type: ignore[arg-type]
        assert not torch.equal(before.heads[acting].weight, model.heads[acting].weight)  # type: ignore[arg-type]
        assert not torch.equal(before.body.weight, model.body.weight)


@pytest.mark.parametrize("sequential", [False, True], ids=["checkpoint", "checkpoint_sequential"])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_a_reentrant_checkpoint_is_refused_by_name(kind: str, sequential: bool) -> None:
    """Its parameters only seem to be without use: zero columns for them would be silently wrong."""

    class Checkpointed(nn.Module):
        """A body that is computed again in the backward pass."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.body, self.head = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 5)), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            """Logits of shape (b, 3)."""
            h = self.first(x)
            if sequential:
                h = checkpoint_sequential(nn.Sequential(self.body, nn.Tanh()), 2, h, use_reentrant=True)
            else:
                h = checkpoint(self.body, h, use_reentrant=True).tanh()
            logits: Tensor = self.head(h.sin())
            return logits

    model, criterion = Checkpointed().double(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedLayer, match=r"(?s)body.*use_reentrant=False"):
        captured(capture, criterion(model(double(6, 4)), classes(6)))
