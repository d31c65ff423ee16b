"""Kind E: hooks of the user's own see the backward passes that the user makes, and no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import NGD
from host_client.curvature import Capture
from tests.host_client.kinds.reference import assert_same, captured, classes, double, of_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")

KINDS = ["exact", "mc", "empirical"]
STEPS = 3


class Kept(nn.Module):
    """Keeps its hidden activations, and shows them to a function before it goes on."""

    def __init__(self, shown: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.middle, self.head, self.shown = nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 3), shown

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (b, 3)."""
        self.hidden = self.middle(self.body(x))
        self.shown(self.hidden)
        logits: Tensor = self.head(self.hidden.tanh())
        return logits


class Counter:
    """Counts its calls, and checks that each argument is a plain gradient of the right shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.seen: list[Tensor] = []
        self.shape = shape

    def __call__(self, gradient: Tensor) -> None:
        """Hook on a tensor."""
        assert tuple(gradient.shape) == self.shape
        self.seen.append(gradient.detach().clone())


@pytest.mark.parametrize("kind", KINDS)
def test_an_activations_gradient_is_the_one_without_capture(kind: str) -> None:
    model = Kept(lambda h: h.retain_grad()).double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]
    for seed in range(STEPS):
        x, y = double(4, 4, seed=seed), classes(4)
        loss = criterion(model(x), y)
        assert model.hidden.grad is None, "the capture's own passes leave nothing behind"
        loss.backward()
        capture.operator_of_gradients().dense()
        F.cross_entropy(twin(x), y).backward()
        torch.testing.assert_close(model.hidden.grad, twin.hidden.grad, rtol=1e-12, atol=0)
        model.zero_grad()
        capture.forget_gradients()


def _on_the_tensor(h: Tensor, seen: Callable[..., None]) -> None:
    h.register_hook(seen)


def _on_its_node(h: Tensor, seen: Callable[..., None]) -> None:
    assert h.grad_fn is not None
    h.grad_fn.register_hook(lambda inputs, outputs: seen(outputs[0]))


@pytest.mark.parametrize("hook", [_on_the_tensor, _on_its_node])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_on_an_activation_runs_once_in_each_backward_pass(kind: str, hook: Callable[..., None]) -> None:
    counter = Counter((4, 5))
    model = Kept(lambda h: hook(h, counter)).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]
    for seed in range(STEPS):
        captured(capture, criterion(model(double(4, 4, seed=seed)), classes(4)))
        assert len(counter.seen) == seed + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_hook_on_a_module_runs_once_and_sees_its_gradients(kind: str) -> None:
    seen: list[Tensor] = []
    model = Kept(lambda h: None).double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    model.middle.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].clone()))
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]
    for seed in range(STEPS):
        x, y = double(4, 4, seed=seed), classes(4)
        f = captured(capture, criterion(model(x), y))
        twin.shown = lambda h: h.retain_grad()
        F.cross_entropy(twin(x), y).backward()
        assert len(seen) == seed + 1
        torch.testing.assert_close(seen[-1], twin.hidden.grad, rtol=1e-12, atol=0)
        if kind == "exact":
            assert_same(f, of_cross_entropy(twin(x), y, twin), model)


class Recurrent(nn.Module):
    """Torch's LSTM, whose weights go into a function without a rule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (b, 3) from (b, 4), as two tokens."""
        states, _ = self.lstm(torch.stack([x, 2 * x], 1))
        logits: Tensor = self.head(states[:, -1])
        return logits


def _bilinear() -> nn.Module:
    class Bilinear(nn.Module):
        """A product of the input with itself."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Bilinear(4, 4, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            """Logits of shape (b, 3)."""
            logits: Tensor = self.head(self.body(x, x))
            return logits

    return Bilinear()


HOOKED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LSTM": (Recurrent, "lstm.weight_hh_l0"),
    "PReLU": (lambda: Kept(lambda h: None), "middle.weight"),
    "bilinear": (_bilinear, "body.weight"),
    "linear": (lambda: Kept(lambda h: None), "body.weight"),
}


@pytest.mark.parametrize("name", ["LSTM", "PReLU", "bilinear"])
def test_a_clipping_hook_on_a_parameter_leaves_the_curvature_alone(name: str) -> None:
    make, path = HOOKED[name]
    model = make().double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    counts: list[int] = []

    def clip(gradient: Tensor) -> Tensor:
        counts.append(1)
        return gradient.clamp(-1e-3, 1e-3)

    model.get_parameter(path).register_hook(clip)
    capture = Capture(model, criterion)
    for seed in range(STEPS):
        x, y = double(4, 4, seed=seed), classes(4)
        criterion(model(x), y).backward()
        gradient = model.get_parameter(path).grad
        assert gradient is not None
        assert float(gradient.abs().max()) <= 1e-3
        a = capture.operator_of_gradients().dense()
        assert_same(a.T @ a, of_cross_entropy(twin(x), y, twin), model)
        assert len(counts) == seed + 1
        model.zero_grad()
        capture.forget_gradients()


@pytest.mark.parametrize("name", ["LSTM", "bilinear"])
def test_a_hook_after_accumulation_runs_once(name: str) -> None:
    make, path = HOOKED[name]
    model = make().double()
    criterion = nn.CrossEntropyLoss()
    calls: list[Tensor] = []
    handle = model.get_parameter(path).register_post_accumulate_grad_hook(lambda p: calls.append(p))
    hook = model.get_parameter(path).register_hook(lambda g: calls.append(g))
    capture = Capture(model, criterion)
    captured(capture, criterion(model(double(4, 4)), classes(4)))
    assert len(calls) == 2
    handle.remove()
    hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_handles_can_be_removed_while_training_goes_on(kind: str) -> None:
    """A hook that the user removes after the forward pass does not run; one that stays does."""
    calls: list[str] = []
    handles: list[Any] = []

    def shown(h: Tensor) -> None:
        handles.append(h.register_hook(lambda g: calls.append("removed")))
        h.register_hook(lambda g: calls.append("kept"))

    model = Kept(shown).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]
    for seed in range(STEPS):
        loss = criterion(model(double(4, 4, seed=seed)), classes(4))
        handles[-1].remove()
        captured(capture, loss)
    assert calls == ["kept"] * STEPS


def test_hooks_run_once_a_step_of_an_optimizer() -> None:
    counter, steps = Counter((4, 5)), 4
    model = Kept(lambda h: h.register_hook(counter))
    criterion = nn.CrossEntropyLoss()
    optimizer = NGD(model, criterion, lr=0.1, damping=0.1, curvature="mc", samples=2)
    for seed in range(steps):
        optimizer.zero_grad()
        criterion(model(double(4, 4, seed=seed).float()), classes(4)).backward()
        optimizer.step()
    assert len(counter.seen) == steps
