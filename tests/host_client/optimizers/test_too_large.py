"""A curvature that is too large is refused through the whole, before anything is reserved for it."""

import resource

import pytest
import torch
from torch import nn

from host_client.capacity import Capacity
from host_client.curvature import CurvatureTooLarge
from host_client.optimizers import TNGD
from tests.host_client.optimizers.fakes import Recorder

VOCABULARY = 20_000


class Language(nn.Module):
    """Predicts each next token from this one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of shape (b, positions, vocabulary)."""
        logits: torch.Tensor = self.head(self.embedding(tokens))
        return logits


def _optimizer(model: nn.Module, criterion: nn.Module, session: Recorder, **options: object) -> TNGD:
    return TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=1.0, **options)  # type: ignore[arg-type]


def test_a_large_vocabulary_is_refused_before_memory_is_taken_and_trains_with_what_would_fit() -> None:
    model, criterion, session = Language(), nn.CrossEntropyLoss(), Recorder()
    optimizer = _optimizer(model, criterion, session)
    tokens, following = torch.randint(VOCABULARY, (2, 4, 8))
    before = [parameter.clone() for parameter in model.parameters()]

    z = model(tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # 8 positions × 19,999 columns of 4 × 8 × 20,000 logits: 382 GiB of cotangents.
    with pytest.raises(CurvatureTooLarge, match=r'on the host.*Most is taken by .*curvature="mc" with samples=') as no:
        criterion(z.flatten(0, 1), following.flatten())
    # What the loss itself takes is there, and nothing besides; in KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < (64 << 10)
    assert no.value.estimate.host > 300 << 30
    assert not session.asked
    optimizer.close()  # type: ignore[union-attr]

    optimizer = _optimizer(model, criterion, session, curvature="mc", samples=2)
    criterion(model(tokens).flatten(0, 1), following.flatten()).backward()
    optimizer.step()
    assert len(session.asked) == 1
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_what_fits_in_16_bits_is_not_refused() -> None:
    x, y = torch.randn(8, 20), torch.randint(3, (8,))
    # 8 inputs of 20 and 2 × 8 cotangents of 3 features, and a drive of 63 cells in float32.
    exactly = Recorder(capacity=Capacity(2 * (160 + 48) + 4 * 63, 63, here=False))
    for precision in ("int16", "float16"):
        model, criterion = nn.Linear(20, 3), nn.CrossEntropyLoss()
        optimizer = _optimizer(model, criterion, exactly, precision=precision)
        criterion(model(x), y).backward()
        optimizer.step()
    model, criterion = nn.Linear(20, 3), nn.CrossEntropyLoss()
    optimizer = _optimizer(model, criterion, exactly)
    with pytest.raises(CurvatureTooLarge):
        criterion(model(x), y)
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("capacity", "reason"),
    [
        (Capacity(1000, 10**6, here=False), "the device takes uploads of at most 0.977 KiB"),
        (Capacity(1 << 30, 10, here=False), "the device has 10 cells for 63 parameters"),
    ],
)
def test_what_the_device_cannot_hold_is_refused_before_it_is_sent(capacity: Capacity, reason: str) -> None:
    model, criterion, session = nn.Linear(20, 3), nn.CrossEntropyLoss(), Recorder(capacity=capacity)
    optimizer = _optimizer(model, criterion, session)
    x, y = torch.randn(8, 20), torch.randint(3, (8,))
    with pytest.raises(CurvatureTooLarge, match=reason):
        criterion(model(x), y)
    # The session is replaced by one of a device that is large enough.
    optimizer.session = Recorder()
    criterion(model(x), y).backward()
    optimizer.step()
