"""Kind L: batch norm in training mode has the curvature of the network with the batch's statistics as constants."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import NGD
from host_client.curvature import Capture, CurvatureApproximation
from tests.host_client.kinds.reference import (
    assert_same,
    captured,
    classes,
    double,
    empirical,
    of_cross_entropy,
)
from tests.networks import ConstantStatistics


def _constant(model: nn.Module) -> nn.Module:
    """A copy with every batch norm replaced."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(module, name, ConstantStatistics(child))
    return twin


class UNet(nn.Module):
    """Two levels, with a batch norm after each convolution; logits (b, 2, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.low = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.up = nn.ConvTranspose2d(3, 2, 2, stride=2)
        self.join = nn.Sequential(nn.Conv2d(5, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each pixel."""
        high = self.down(x)
        low = self.up(self.low(F.max_pool2d(high, 2)))
        logits: Tensor = self.out(self.join(torch.cat([high, low], 1)))
        return logits


def _mlp(affine: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, affine=affine), nn.Tanh(), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Tanh(),
        nn.Linear(5, 3),
    )  # fmt: skip


def _images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[int], Tensor]]] = {
    "MLP": (_mlp, (4,), classes),
    "MLP, not affine": (lambda: _mlp(affine=False), (4,), classes),
    "convolution": (_images, (1, 4, 4), classes),
    "U-Net": (UNet, (1, 4, 4), lambda b: (torch.arange(16 * b) % 2).view(b, 4, 4)),
}


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("name", MODELS)
def test_statistics_of_the_batch_are_constants_which_is_announced_once(name: str, kind: str) -> None:
    make, shape, labels = MODELS[name]
    model = make().double()
    twin, criterion = _constant(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]

    def passes() -> None:
        for seed, samples in enumerate((6, 4)):
            x, y = double(samples, *shape, seed=seed), labels(samples)
            z = twin(x)
            if kind == "exact" or z.dim() == 2:
                expected = of_cross_entropy(z, y, twin, kind)
            else:
                losses = F.cross_entropy(z, y, reduction="none").flatten(1).sum(1)
                expected = empirical(losses, list(twin.parameters()), y.numel())
            assert_same(captured(capture, criterion(model(x), y)), expected, model)

    with pytest.warns(CurvatureApproximation, match="BatchNorm") as said:
        passes()
    assert len(said) == 1


@pytest.mark.parametrize("name", ["MLP", "U-Net"])
@pytest.mark.filterwarnings("ignore")
def test_gradients_and_running_statistics_are_those_of_plain_training(name: str) -> None:
    make, shape, labels = MODELS[name]
    model, criterion = make().double(), nn.CrossEntropyLoss()
    twin = copy.deepcopy(model)
    capture = Capture(model, criterion)
    for seed in range(3):
        x, y = double(4, *shape, seed=seed), labels(4)
        for trained, loss in ((twin, F.cross_entropy(twin(x), y)), (model, criterion(model(x), y))):
            trained.zero_grad()
            loss.backward()
        capture.operator_of_gradients().dense()
        capture.forget_gradients()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)
    for own, plain in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_batch_norm_as_a_function() -> None:
    class Functional(nn.Module):
        """Normalises by torch's function, without running statistics."""

        def __init__(self, constant: bool) -> None:
            super().__init__()
            self.body, self.head, self.constant = nn.Linear(4, 5), nn.Linear(5, 3), constant

        def forward(self, x: Tensor) -> Tensor:
            """Logits of shape (b, 3)."""
            h = self.body(x)
            if self.constant:
                h = (h - h.detach().mean(0)) / (h.detach().var(0, unbiased=False) + 1e-5).sqrt()
            else:
                h = F.batch_norm(h, None, None, training=True)
            logits: Tensor = self.head(h)
            return logits

    model, twin, criterion = Functional(False).double(), Functional(True).double(), nn.CrossEntropyLoss()
    twin.load_state_dict(model.state_dict())
    x, y = double(6, 4), classes(6)
    expected = of_cross_entropy(twin(x), y, twin)
    assert_same(captured(Capture(model, criterion), criterion(model(x), y)), expected, model)


@pytest.mark.filterwarnings("ignore")
def test_a_network_with_batch_norm_trains() -> None:
    model, criterion = _mlp(), nn.CrossEntropyLoss()
    optimizer = NGD(model, criterion, lr=1.0, damping=1.0)
    x = double(32, 4).float()
    y = x[:, :3].argmax(1)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
