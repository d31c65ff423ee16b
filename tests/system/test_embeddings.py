"""Devices smaller than the problem, behind daemons of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from host_client import connect
from host_client.embeddings import Embedding, embedding_of, solve_exactly
from host_client.loop import NoOlderThan
from spu_link.errors import ClockMismatch
from spu_link.operators import Operator
from tests.daemon import Daemon
from tests.host_client.embeddings.operators import factors, rows, vector
from tests.host_client.embeddings.training import CELLS, Training, digital
from tests.system.raw import eventually

M = max(CELLS.values())
FREE = ("--rate", "100000", "--cells", str(M))


class Two:
    """Two free-running devices of M cells side by side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons = [Daemon(folder / name, *FREE) for name in ("a", "b")]
        self.addresses = [daemon.address for daemon in self._daemons]

    def kill_second(self) -> None:
        self._daemons[1].kill()

    def start_second(self) -> None:
        self._daemons[1].close()
        self._daemons[1] = Daemon(self._folder / "b", *FREE)

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    devices = Two(tmp_path_factory.mktemp("d"))
    yield devices
    devices.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stepped device of M cells."""
    with Daemon(tmp_path_factory.mktemp("d") / "s", "--clock", "stepped", "--cells", str(M)) as one:
        yield one.address


def embedding(name: str) -> Embedding:
    found = embedding_of(name)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "operator"), [("block", rows(9, 20, 3, 11)), ("kronecker", factors((4, 20), (9, 7)))])
def test_two_devices_side_by_side_give_what_one_gives(two: Two, name: str, operator: Operator) -> None:
    drive = vector(operator.parameters)
    exact = solve_exactly(embedding(name), operator, drive, 0.1)
    with connect(two.addresses, embedding=name) as spu, spu.session() as session:
        reading = session.solve(operator, drive, analog_time=300.0, damping=0.1)
        torch.testing.assert_close(reading.value, exact, rtol=1e-6, atol=1e-9)
        assert reading.age == 300.0
    with connect(two.addresses[0], embedding=name) as spu, spu.session() as session:
        before = session.device_time
        alone = session.solve(operator, drive, analog_time=300.0, damping=0.1)
        torch.testing.assert_close(alone.value, reading.value, rtol=1e-6, atol=1e-9)
        # One after the other on a device, each for its whole analog time.
        assert alone.time - before >= 300.0 * (3 if name == "block" else 4 + 7 + 4 + 7)


@pytest.mark.parametrize("name", list(CELLS))
def test_devices_work_while_the_next_gradient_is_computed(two: Two, name: str) -> None:
    with (
        connect(two.addresses[0] if name == "sample" else two.addresses, embedding=name) as spu,
        spu.session() as session,
    ):
        training = Training(session, freshness=NoOlderThan(programs=1), analog_time=100.0)
        losses = training.steps(0, 20)
        assert sum(losses[-3:]) < sum(losses[:3])
        assert training.optimizer.counts["uploads"] <= 20


def test_clocks_of_two_kinds_are_refused(two: Two, small: str) -> None:
    with pytest.raises(ClockMismatch, match="devices side by side need clocks of one kind"):
        connect([two.addresses[0], small], embedding="block")


def test_without_one_of_two_devices_steps_are_digital_until_it_is_back(two: Two) -> None:
    with connect(two.addresses, embedding="block") as spu, spu.session() as session:
        training = Training(session, on_loss="digital")
        counts = training.optimizer.counts
        training.steps(0, 2)
        two.kill_second()
        training.steps(2, 4)
        assert (counts["digital"], counts["lost"]) == (2, 1)
        two.start_second()
        eventually(lambda: counts["reconnected"] == 1, "the second device is used again")
        training.steps(4, 6)
        assert (counts["digital"], counts["reconnected"]) == (2, 1)
    torch.testing.assert_close(training.parameters, digital(embedding("block"), 6), rtol=1e-5, atol=1e-7)
