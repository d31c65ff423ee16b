"""Training that is broken off and taken up again, device included."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import TNGD, Session, connect
from host_client.loop import NoOlderThan, TooStale
from host_client.optimizers import LevenbergMarquardt, LineSearch
from tests.daemon import Daemon
from tests.host_client.optimizers.training import flat
from tests.system.raw import eventually

STEPS = 5


class Training:
    """A small network on batches that depend on the number of the step alone."""

    def __init__(self, session: Session, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5))
        self.criterion = nn.CrossEntropyLoss()
        settings = {"lr": 0.1, "damping": 0.1, "analog_time": 5.0, "delay": 0.2, "noise": 1e-4, **options}
        self.optimizer = TNGD(self.model, self.criterion, session, **settings)

    def steps(self, first: int, last: int) -> None:
        for number in range(first, last):
            generator = torch.Generator().manual_seed(number)
            inputs, targets = torch.randn(16, 12, generator=generator), torch.arange(16) % 5
            self.optimizer.step(partial(self.loss, inputs, targets))

    def loss(self, inputs: Tensor, targets: Tensor) -> float:
        """The closure: with the damping adapted a step needs one."""
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(inputs), targets)
        loss.backward()
        return loss.item()

    def save(self) -> bytes:
        file = io.BytesIO()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "random": torch.get_rng_state()}, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])


def twice_as_many(device: Callable[[int], AbstractContextManager[Any]], **options: Any) -> tuple[Tensor, Tensor]:
    """Parameters after 2k steps at one go, and after k steps, a checkpoint, and k steps on another device."""
    with device(0) as spu, spu.session() as session:
        whole = Training(session, **options)
        whole.steps(0, 2 * STEPS)
    with device(1) as spu, spu.session() as session:
        first = Training(session, **options)
        first.steps(0, STEPS)
        saved = first.save()
        first.steps(STEPS, STEPS + 2)  # what comes after the checkpoint is lost
    with device(2) as spu, spu.session() as session:
        second = Training(session, **options)
        second.load(saved)
        second.steps(STEPS, 2 * STEPS)
    return flat(whole.model), flat(second.model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "noise": 0.0},
        {"betas": (0.5, 0.9), "lr": 0.01, "weight_decay": 0.1},
        {"start": "drive"},
        {"curvature_every": 3},
        {"curvature": "mc", "samples": 2},
        {"readings": 3, "spacing": 0.7, "combine": "each"},
        {"readings": 2, "spacing": 0.7, "trust_region": 1e-4, "momentum": 0.9},
        {"adapt_damping": LevenbergMarquardt(every=2), "curvature_every": 2},
        {"spring": 0.9, "curvature_every": 2},
        {"line_search": LineSearch(), "momentum": 0.9, "lr": 3.0},
        {"period": 2.0},
        {"precision": "int16", "damping": lambda step: 0.1 / (1 + step)},
        {"freshness": NoOlderThan(programs=1)},
    ],
)
def test_two_k_steps_are_k_steps_a_checkpoint_and_k_steps_bit_for_bit(options: dict[str, Any]) -> None:
    whole, resumed = twice_as_many(lambda seed: connect("inproc:", clock="stepped", seed=7), **options)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_the_same_through_daemons_of_their_own(daemon: Callable[..., Daemon]) -> None:
    whole, resumed = twice_as_many(lambda _: connect(daemon("--clock", "stepped", "--seed", "7").address, timeout=20.0))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_a_free_running_device_goes_on_from_where_it_was() -> None:
    with connect("inproc:", rate=1e5) as spu, spu.session() as session:
        training = Training(session, noise=0.0, analog_time=500.0)
        training.steps(0, STEPS)
        saved, last = training.save(), training.optimizer.last_reading
        assert last is not None
    with connect("inproc:", rate=10.0) as spu, spu.session() as session:
        resumed = Training(session, noise=0.0, analog_time=500.0)
        resumed.load(saved)
        # Under the program of the checkpoint, which had come to rest.
        torch.testing.assert_close(session.read().value, last.value, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_made_long_after_the_last_step_is_taken_up_by_a_device_that_has_just_begun() -> None:
    with connect("inproc:", rate=1e7) as spu, spu.session() as session:
        training = Training(session)
        training.steps(0, 2)
        session.read(at=session.read().time + 500_000.0)  # as after an evaluation
        saved = training.save()
    with connect("inproc:", rate=1e3) as spu, spu.session() as session:
        resumed = Training(session)
        resumed.load(saved)
        resumed.steps(2, 4)
        assert resumed.optimizer.steps == 4


def test_after_a_step_that_failed_a_checkpoint_starts_from_the_last_reading() -> None:
    with connect("inproc:", clock="stepped", seed=7) as spu, spu.session() as session:
        first = Training(session)
        first.steps(0, 2)
        saved = first.save()
        failing = Training(session, timeout=1e-9)
        failing.load(saved)
        with pytest.raises(TooStale):
            failing.steps(2, 3)
        eventually(lambda: failing.optimizer.counts["uploads"] == 1, "the program of the failed step has effect")
        after = failing.save()

    def third_step(saved: bytes, *, device: bool) -> Tensor:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        if not device:
            del state["optimizer"]["device"]
        with connect("inproc:", clock="stepped", seed=7) as spu, spu.session() as session:
            training = Training(session)
            training.model.load_state_dict(state["model"])
            training.optimizer.load_state_dict(state["optimizer"])
            training.steps(2, 3)
            return flat(training.model)

    torch.testing.assert_close(third_step(after, device=True), third_step(saved, device=False), rtol=0, atol=0)


def test_a_device_that_does_not_take_the_state_starts_from_the_last_reading(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    with connect("inproc:", clock="stepped") as spu, spu.session() as before:
        training = Training(before)
        training.steps(0, 2)
        state = training.optimizer.state_dict()
    state["device"]["state"][:64] = 0
    resumed = Training(session)
    resumed.optimizer.load_state_dict(state)
    assert "not restored" in caplog.text
    resumed.steps(2, 4)
    assert resumed.optimizer.steps == 4
