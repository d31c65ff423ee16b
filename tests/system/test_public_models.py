"""Networks that nobody here wrote train through a daemon in the ordinary loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import Session, connect
from host_client.curvature import CurvatureApproximation
from host_client.optimizers import TNGD
from tests import public
from tests.daemon import Daemon

CLASSES = 3


@pytest.fixture(autouse=True)
def _offline_and_seeded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is fetched; every run is the same."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def session(free: Daemon) -> Iterator[Session]:
    """On a daemon in a separate process."""
    with connect(free.address, timeout=30.0) as spu, spu.session() as one:
        yield one


def _pictures(b: int) -> tuple[Tensor, Tensor]:
    """Noise with a stripe, whose place is the class."""
    labels = torch.arange(b) % CLASSES
    pictures = 0.3 * torch.randn(b, 3, 16, 16)
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        picture[:, 5 * label : 5 * label + 5] += 1.0
    return pictures, labels


def _sentences(b: int) -> tuple[Tensor, Tensor]:
    """Random tokens, among them one that is the class."""
    labels = torch.arange(b) % CLASSES
    tokens = torch.randint(1 + CLASSES, 11, (b, 6))
    tokens[torch.arange(b), torch.randint(1, 6, (b,))] = 1 + labels
    return tokens, labels


def _train(
    model: nn.Module,
    session: Session,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int,
    batch: int,
    autocast: bool = False,
    **options: Any,
) -> list[float]:
    """The ordinary loop; the losses."""
    criterion = nn.CrossEntropyLoss()
    optimizer = TNGD(model, criterion, session, lr=0.2, damping=0.3, analog_time=20.0, **options)
    losses = []
    for _ in range(steps):
        inputs, labels = batches(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = criterion(model(inputs).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert session.uploaded_bytes > 0
    optimizer.close()
    return losses


def _assert_learnt(losses: list[float], fraction: float) -> None:
    assert fmean(losses[-4:]) < fraction * fmean(losses[:2]), losses


CURVATURES = pytest.mark.parametrize(
    "options", [{"curvature": "exact"}, {"curvature": "mc"}, {"curvature": "empirical"}], ids=lambda o: o["curvature"]
)


def _resnet() -> nn.Module:
    """Its batch normalisations have seen pictures, and are in training mode."""
    model = public.resnet(embedding_size=4, hidden_sizes=[4, 8]).train()
    with torch.no_grad():
        for _ in range(10):
            model(_pictures(24)[0])
    return model


def test_a_resnet_with_batch_statistics_trains_with_a_warning(session: Session) -> None:
    with pytest.warns(CurvatureApproximation, match="statistics"):
        losses = _train(_resnet(), session, _pictures, steps=2, batch=6)
    assert torch.tensor(losses).isfinite().all()


@CURVATURES
def test_a_resnet_learns(session: Session, options: dict[str, Any]) -> None:
    model = _resnet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    _assert_learnt(_train(model, session, _pictures, steps=25, batch=12, **options), 0.5)


@CURVATURES
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_encoder_learns(session: Session, attention: str, options: dict[str, Any]) -> None:
    model = public.bert(attention, hidden_size=16, intermediate_size=32, initializer_range=0.2)
    _assert_learnt(_train(model, session, _sentences, steps=30, batch=12, **options), 0.5)


@pytest.mark.parametrize("options", [{"curvature": "exact"}, {"curvature": "mc", "samples": 4}], ids=["exact", "mc"])
def test_adapters_of_a_frozen_encoder_learn(session: Session, options: dict[str, Any]) -> None:
    model = public.lora("sdpa", hidden_size=16, intermediate_size=32)
    frozen = {path: p.clone() for path, p in model.named_parameters() if not p.requires_grad}
    assert sum(p.numel() for p in frozen.values()) > sum(p.numel() for p in model.parameters() if p.requires_grad)
    _assert_learnt(_train(model, session, _sentences, steps=40, batch=12, **options), 0.7)
    for path, p in model.named_parameters():
        if path in frozen:
            torch.testing.assert_close(p, frozen[path], rtol=0, atol=0)


def test_an_encoder_with_dropout_learns_under_autocast(session: Session) -> None:
    model = public.bert("sdpa", hidden_size=16, intermediate_size=32, hidden_dropout_prob=0.1, initializer_range=0.2)
    losses = _train(model, session, _sentences, steps=30, batch=24, autocast=True, curvature="mc")
    _assert_learnt(losses, 0.5)


def test_a_loss_that_the_model_computes_itself_is_refused_with_a_way_out(session: Session) -> None:
    model = public.bert()
    optimizer = TNGD(model, nn.CrossEntropyLoss(), session, lr=0.1, damping=0.1, analog_time=1.0)
    tokens, labels = _sentences(6)
    model(input_ids=tokens, labels=labels).loss.backward()
    with pytest.raises(RuntimeError, match="criterion"):
        optimizer.step()
