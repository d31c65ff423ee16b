"""Training whose device is lost, halted, held by another, or too slow: every policy, through real daemons."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from host_client import TNGD, aio, connect
from host_client.blocking.thread import post
from host_client.loop import NoOlderThan, TooStale
from host_client.record.events import DeviceBack, DeviceLost, Event, Updated, Uploaded
from spu_link.errors import DeviceHalted, DeviceUnavailable
from spu_link.operators import Rows
from tests.daemon import Daemon
from tests.pressure import Undisturbed
from tests.system.device import LONG, A, B, solution
from tests.system.raw import eventually

RATE = "100000"


class Restartable:
    """A free-running daemon at one address, which can be killed and started again."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._daemons = [Daemon(socket, "--rate", RATE)]

    @property
    def address(self) -> str:
        return self._daemons[-1].address

    def kill(self) -> None:
        """SIGKILL: nothing is said, and nothing cleaned up."""
        self._daemons[-1].kill()

    def kill_driver(self) -> None:
        """SIGKILL for the driver's process, not for the daemon."""
        driver = self._daemons[-1].driver_process()
        driver.kill()
        driver.wait()

    def start(self) -> None:
        self._daemons.append(Daemon(self._socket, "--rate", RATE))

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.close()


@pytest.fixture
def restartable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restartable]:
    one = Restartable(tmp_path_factory.mktemp("d") / "s")
    yield one
    one.close()


class Training:
    """A small network and its loop."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.criterion = nn.CrossEntropyLoss()
        self.centres = torch.randn(4, 8)
        self.generator = torch.Generator().manual_seed(seed)

    def optimizer(self, session: object, **options: object) -> TNGD:
        hyperparameters = {"lr": 0.1, "damping": 0.1, "analog_time": 30.0, **options}
        return TNGD(self.model, self.criterion, session, **hyperparameters)  # type: ignore[arg-type]

    def steps(self, optimizer: TNGD, number: int, before: Callable[[int], None] = lambda step: None) -> list[float]:
        losses = []
        for step in range(number):
            before(step)
            targets = torch.randint(4, (64,), generator=self.generator)
            inputs = self.centres[targets] + torch.randn(64, 8, generator=self.generator)
            loss = self.criterion(self.model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses


def test_without_a_policy_the_loss_of_the_device_is_raised_and_nothing_has_moved(restartable: Restartable) -> None:
    training = Training()
    with connect(restartable.address) as spu, spu.session() as session:
        optimizer = training.optimizer(session, momentum=0.5)
        training.steps(optimizer, 3)
        before = [p.detach().clone() for p in training.model.parameters()]
        restartable.kill()
        with pytest.raises(DeviceUnavailable):
            training.steps(optimizer, 1)
        torch.testing.assert_close([p.detach() for p in training.model.parameters()], before, rtol=0, atol=0)
        assert optimizer.steps == 3


@pytest.mark.parametrize("policy", ["digital", "gradient"])
def test_steps_go_on_without_the_device_and_with_it_again(restartable: Restartable, policy: str) -> None:
    training, events = Training(), list[Event]()
    with connect(restartable.address) as spu, spu.session() as session:
        optimizer = training.optimizer(session, on_loss=policy, record=events.append)
        training.steps(optimizer, 3)
        restartable.kill()
        began = time.monotonic()
        training.steps(optimizer, 5)
        assert time.monotonic() - began < 15.0  # and not until the device is back
        assert optimizer.counts[policy] == 5
        restartable.start()
        eventually(lambda: optimizer.counts["reconnected"] == 1, "the session is opened again")
        training.steps(optimizer, 3)
        assert optimizer.counts[policy] == 5
        assert optimizer.counts["lost"] == 1
    sources = [one.source for one in events if isinstance(one, Updated)]
    assert sources == ["device"] * 3 + [policy] * 5 + ["device"] * 3
    (lost,) = [one for one in events if isinstance(one, DeviceLost)]
    (back,) = [one for one in events if isinstance(one, DeviceBack)]
    assert lost.policy == policy
    assert lost.host < back.host
    epochs = [one.epoch for one in events if isinstance(one, Uploaded) and one.outcome == "took effect"]
    assert epochs == [epochs[0]] * 3 + [back.epoch] * 3
    assert back.epoch != epochs[0]


def test_the_digital_solve_in_its_place_is_the_natural_gradient(restartable: Restartable) -> None:
    training, other = Training(), Training()
    with connect(restartable.address) as spu, spu.session() as session:
        optimizer = training.optimizer(session, on_loss="digital", analog_time=500.0, start="drive")
        restartable.kill()
        training.steps(optimizer, 4)
    restartable.start()
    with connect(restartable.address) as spu, spu.session() as session:
        other.steps(other.optimizer(session, analog_time=500.0, start="drive"), 4)
    torch.testing.assert_close(
        [p.detach() for p in training.model.parameters()],
        [p.detach() for p in other.model.parameters()],
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_new_connection_finds_a_daemon_at_once_though_an_old_one_has_just_missed_it(restartable: Restartable) -> None:
    with connect(restartable.address) as old:
        restartable.kill()
        watch = Undisturbed()
        while watch.seconds < 2.0:  # its pauses grow to a second
            with pytest.raises(DeviceUnavailable):
                old.info  # noqa: B018
        restartable.start()
        with connect(restartable.address) as new:
            assert new.info.driver == "emulator"


def test_a_step_waits_for_a_daemon_that_is_killed_and_started_again(restartable: Restartable) -> None:
    """The loss goes on as in runs that nobody disturbed: within four standard deviations of six of them."""

    def undisturbed(seed: int) -> list[float]:
        training = Training(seed)
        with connect(restartable.address) as spu, spu.session() as session:
            return training.steps(training.optimizer(session), 60)

    spread = [undisturbed(seed) for seed in range(6)]

    def kill_and_restart(step: int) -> None:
        if step == 30:
            restartable.kill()
            threading.Timer(0.3, restartable.start).start()

    training, events = Training(0), list[Event]()
    with connect(restartable.address) as spu, spu.session() as session:
        optimizer = training.optimizer(session, on_loss="wait", timeout=60.0, record=events.append)
        losses = training.steps(optimizer, 60, kill_and_restart)
    assert optimizer.counts["reconnected"] == optimizer.counts["lost"] == 1
    assert optimizer.counts["waited"] >= 1
    assert optimizer.counts["updates"] == 60
    for window in (slice(30, 35), slice(35, 45), slice(45, 60)):
        means = [statistics.fmean(run[window]) for run in spread]
        assert abs(statistics.fmean(losses[window]) - means[0]) < 4 * statistics.stdev(means)
    (lost,) = [one for one in events if isinstance(one, DeviceLost)]
    (back,) = [one for one in events if isinstance(one, DeviceBack)]
    assert lost.host < back.host


def test_a_kill_in_mid_flight_hangs_nothing_in_the_free_running_loop(restartable: Restartable) -> None:
    training = Training()
    with connect(restartable.address) as spu, spu.session() as session:
        optimizer = training.optimizer(session, on_loss="digital", freshness=NoOlderThan(programs=1))
        for time_lost in (1, 2):
            training.steps(optimizer, 7)
            restartable.kill()
            training.steps(optimizer, 3)
            restartable.start()
            training.steps(optimizer, 3)
            eventually(lambda times=time_lost: optimizer.counts["reconnected"] == times, "the session is open again")
        used = optimizer.counts["readings"]
        training.steps(optimizer, 5)
        assert optimizer.counts["readings"] > used
        assert optimizer.counts["lost"] == 2


def test_waiting_ends_with_the_timeout(restartable: Restartable) -> None:
    training = Training()
    with connect(restartable.address) as spu, spu.session() as session:
        optimizer = training.optimizer(session, on_loss="wait", timeout=1.0)
        training.steps(optimizer, 1)
        began = time.monotonic()
        restartable.kill()
        with pytest.raises(DeviceUnavailable):
            training.steps(optimizer, 1)
        assert 0.5 < time.monotonic() - began < 15.0


def test_a_device_that_was_halted_is_not_taken_again(restartable: Restartable, monkeypatch: pytest.MonkeyPatch) -> None:
    training, reopened = Training(), list[aio.Session]()

    async def reopen(session: aio.Session) -> None:
        reopened.append(session)

    monkeypatch.setattr(aio.Session, "reopen", reopen)
    with connect(restartable.address) as spu, spu.session() as session:
        optimizer = training.optimizer(session, on_loss="gradient")
        training.steps(optimizer, 2)
        spu.halt("smoke")
        training.steps(optimizer, 3)
        assert spu.info.state == "halted"  # by now the first attempt to open a session would have been made
        assert reopened == []
        assert optimizer.counts["gradient"] == 3
        assert optimizer.counts["reconnected"] == 0
        with pytest.raises(DeviceHalted, match="smoke"):
            training.steps(training.optimizer(session), 1)
        with spu.session() as another:  # a person clears it
            optimizer.session = another
            training.steps(optimizer, 2)
            assert optimizer.counts["gradient"] == 3


def test_a_device_that_another_took_is_taken_again_when_it_is_free(restartable: Restartable) -> None:
    training = Training()
    with connect(restartable.address) as spu, spu.session(ttl=1.0) as session:
        optimizer = training.optimizer(session, on_loss="digital")
        training.steps(optimizer, 2)
        post(time.sleep, 1.5)  # the client's loop stands still, as in a process that is stopped: the session ends
        with connect(restartable.address) as other, other.session() as theirs:
            training.steps(optimizer, 3)
            reading = theirs.solve(Rows(A), B, damping=0.5, analog_time=LONG, start="drive")
            torch.testing.assert_close(reading.value, solution(B, 0.5))
            assert optimizer.counts["reconnected"] == 0
        eventually(lambda: optimizer.counts["reconnected"] == 1, "the device is free again")
        training.steps(optimizer, 2)
        assert optimizer.counts["digital"] == 3


def test_a_driver_that_fails_is_taken_again_when_the_daemon_has_started_it_anew(restartable: Restartable) -> None:
    training, events = Training(), list[Event]()
    with connect(restartable.address) as spu, spu.session() as session:
        optimizer = training.optimizer(session, on_loss="wait", record=events.append)
        training.steps(optimizer, 2)
        restartable.kill_driver()
        training.steps(optimizer, 2)
        restartable.kill_driver()
        eventually(lambda: spu.info.restarts == 2 and spu.info.state == "halted", "it is there before a step needs it")
        training.steps(optimizer, 2)
        assert optimizer.counts["lost"] == optimizer.counts["reconnected"] == 2
    assert ["SIGKILL" in one.reason for one in events if isinstance(one, DeviceLost)] == [True, True]
    assert [one.source for one in events if isinstance(one, Updated)] == ["device"] * 6


@pytest.mark.parametrize("policy", ["raise", "gradient"])
def test_a_device_that_is_too_slow_counts_as_too_stale(policy: str) -> None:
    training = Training()
    with connect("inproc:", rate=100.0) as spu, spu.session() as session:
        optimizer = training.optimizer(
            session, analog_time=1.0, freshness=NoOlderThan(tau=0.0), on_loss=policy, timeout=0.1
        )
        if policy == "raise":
            with pytest.raises(TooStale, match=r"fresh enough .*tau=0.0"):
                training.steps(optimizer, 1)
        else:
            training.steps(optimizer, 2)
            assert optimizer.counts["gradient"] == 2
