"""Device time is known from the host's clock to within the error that is reported."""

import asyncio
import math
import select
import socket
import threading
import time
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host_client import aio, connect
from host_client.clock import DRIFT, HISTORY, ClockAgreement, Exchange
from spu_link.device_time import DeviceTime
from spu_link.errors import ClockMismatch, EpochMismatch, ReadInPast
from spu_link.operators import Rows
from tests.daemon import Daemon
from tests.pressure import time_enough
from tests.profiles import examples
from tests.system.raw import eventually

SECONDS = st.floats(0.0, 5.0)
EXCHANGES = st.lists(st.tuples(st.floats(0.0, 60.0), SECONDS, st.floats(0.0, 0.1), SECONDS), min_size=1, max_size=20)
"""Of each: pause before it, way there, time at the device, way back; in true seconds."""


class World:
    """A host's clock that is right, and a device's that began at `start` and drifts, computed exactly."""

    def __init__(self, start: float, rate: float, drift: float) -> None:
        self.start = Fraction(start)
        self.nominal = Fraction(rate)
        self.rate = self.nominal * (1 + Fraction(drift))

    def device(self, host: Fraction) -> Fraction:
        return (host - self.start) * self.rate

    def exchange(self, host: Fraction, there: float, inside: float, back: float) -> tuple[Exchange, Fraction]:
        came = host + Fraction(there)
        left = came + Fraction(inside)
        end = left + Fraction(back)
        times = (host, end, self.device(came), self.device(left))
        return Exchange(*map(float, times), epoch=1, rate=float(self.nominal)), end


@settings(max_examples=examples(150))
@given(
    host=st.floats(0.0, 1e7),
    uptime=st.floats(0.0, 1e7),
    rate=st.floats(1e-3, 1e9),
    drift=st.floats(-DRIFT, DRIFT),
    exchanges=EXCHANGES,
    later=st.floats(-1e4, 1e4),
)
@example(
    host=0.0, uptime=0.0, rate=1.0, drift=DRIFT, exchanges=[(0.0, 5.0, 0.0, 0.0), (60.0, 0.0, 0.1, 5.0)], later=1e4
)
def test_the_true_device_time_lies_within_the_error(host, uptime, rate, drift, exchanges, later):
    world = World(host - uptime, rate, drift)
    at = Fraction(host)
    agreement = None
    for pause, *way in exchanges:
        exchange, at = world.exchange(at + Fraction(pause), *way)
        if agreement is None:
            agreement = ClockAgreement(exchange, now=lambda: now)
        else:
            agreement.add(exchange)
    now = float(at)
    asked = now + later
    wrong = float(abs(Fraction(float(agreement.device_time(asked))) - world.device(Fraction(asked))) / world.nominal)
    assert wrong <= agreement.error_at(asked)
    assert agreement.error == agreement.error_at(now)
    device = float(world.device(Fraction(asked)))
    found = agreement.host_time(device)
    slack = 2.0 * math.ulp(device) / rate + math.ulp(asked)  # the asked device time is itself rounded
    assert abs(found - asked) <= agreement.error_at(found) + slack


def agreement_of(*ways: tuple[float, float], gap: float = 1.0) -> ClockAgreement:
    world = World(0.0, 1000.0, 0.0)
    exchanges = [world.exchange(Fraction(k * gap), there, 0.0, back)[0] for k, (there, back) in enumerate(ways)]
    agreement = ClockAgreement(exchanges[0], now=lambda: exchanges[-1].received)
    for exchange in exchanges[1:]:
        agreement.add(exchange)
    return agreement


def test_the_error_is_half_of_the_shortest_way_and_what_drift_adds_with_age():
    agreement = agreement_of((0.010, 0.010), (0.100, 0.0), (0.0, 0.300))
    assert agreement.error == pytest.approx(0.010 + DRIFT * (2.3 - 0.010), rel=1e-3)
    assert agreement.error_at(100.0) == pytest.approx(0.010 + DRIFT * 100.0, rel=1e-2)


def test_an_old_exchange_gives_way_to_a_longer_one_that_is_new():
    agreement = agreement_of((0.001, 0.001), (0.002, 0.002), gap=60.0)
    assert agreement.error == pytest.approx(0.002, rel=1e-2)


def test_an_exchange_is_forgotten_after_so_many_newer_ones():
    short, long = (0.001, 0.001), (0.5, 0.5)
    assert agreement_of(short, *[long] * (HISTORY - 1)).error == pytest.approx(0.001 + DRIFT * HISTORY, rel=1e-2)
    assert agreement_of(short, *[long] * HISTORY).error == pytest.approx(0.5, rel=1e-2)


def test_clocks_that_jumped_against_each_other_begin_anew():
    agreement = agreement_of((0.001, 0.001), (0.001, 0.001))
    world = World(-100.0, 1000.0, 0.0)  # the host slept for 100 s
    agreement.add(world.exchange(Fraction(2), 0.5, 0.0, 0.5)[0])
    assert float(agreement.device_time(2.5)) == pytest.approx(102_500.0)
    assert agreement.error == pytest.approx(0.5, rel=1e-2)


def test_exchanges_of_another_epoch_are_refused():
    agreement = agreement_of((0.001, 0.001))
    with pytest.raises(EpochMismatch):
        agreement.add(Exchange(1.0, 1.1, 5.0, 5.0, epoch=2, rate=1000.0))
    with pytest.raises(EpochMismatch):
        agreement.host_time(DeviceTime(5.0, 2))
    assert agreement.device_time().epoch == agreement.epoch == 1


def test_of_a_stepped_clock_the_newest_time_is_known():
    agreement = ClockAgreement(Exchange(1.0, 1.1, 5.0, 5.0, epoch=3, rate=0.0))
    agreement.advance_to(DeviceTime(9.0, 3))
    agreement.add(Exchange(2.0, 2.1, 7.0, 7.0, epoch=3, rate=0.0))
    assert agreement.device_time() == agreement.device_time(100.0) == DeviceTime(9.0, 3)
    assert (agreement.rate, agreement.error) == (0.0, 0.0)
    with pytest.raises(ClockMismatch):
        agreement.host_time(10.0)


def test_of_a_device_in_this_process_the_truth_is_known():
    with connect("inproc:", clock="free", rate=1e6) as spu, spu.session() as session:
        device = session.aio.lease.link.device
        for _ in range(200):
            host = time.monotonic()
            truth = device.clock.now()
            after = time.monotonic()
            lower = float(session.clock.device_time(host)) - session.clock.error_at(host) * 1e6
            upper = float(session.clock.device_time(after)) + session.clock.error_at(after) * 1e6
            assert lower <= truth <= upper
        eventually(lambda: session.clock.error < 1e-3, "an exchange that nothing held up")
        assert session.clock.epoch == spu.info.epoch == session.device_time.epoch
        assert session.clock.rate == 1e6


def test_a_stepped_device_sends_its_time_with_every_answer(stepped):
    with connect(stepped.address) as spu, spu.session() as session:
        session.program(Rows(torch.ones(1, 2)), torch.ones(2))
        session.advance(3.5)
        assert session.clock.device_time() == session.device_time == spu.info.time
        assert session.clock.rate == 0.0
        assert session.read(at=session.clock.device_time()).time == session.device_time


class Proxy:
    """A TCP proxy that holds back what goes to the daemon by `there` seconds, and what comes from it by `back`."""

    def __init__(self, port: int) -> None:
        self.there, self.back = 0.0, 0.0
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._over = False
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        other: dict[socket.socket, tuple[socket.socket, str]] = {}
        pending: list[tuple[float, socket.socket, bytes]] = []
        while not self._over:
            wait = min((at for at, _, _ in pending), default=math.inf) - time.monotonic()
            ready = select.select([self._listener, *other], [], [], min(max(wait, 0.0), 0.05))[0]
            for one in ready:
                if one is self._listener:
                    client = self._listener.accept()[0]
                    server = socket.create_connection(("127.0.0.1", self._port))
                    other[client], other[server] = (server, "there"), (client, "back")
                elif one in other:
                    to, way = other[one]
                    data = one.recv(1 << 16)
                    if not data:
                        for end in (one, to):
                            del other[end]
                            end.close()
                        pending = [item for item in pending if item[1] not in (one, to)]
                        continue
                    last = max((at for at, end, _ in pending if end is to), default=0.0)
                    pending.append((max(last, time.monotonic() + getattr(self, way)), to, data))
            for item in [item for item in pending if item[0] <= time.monotonic()]:
                pending.remove(item)
                item[1].sendall(item[2])
        for end in other:
            end.close()


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """A free-running daemon at 1000 τ a second, and a proxy before it."""
    with Daemon(tmp_path_factory.mktemp("d") / "s", "--rate", "1000", "--listen", "127.0.0.1:0") as daemon:
        proxy = Proxy(int(daemon.addresses[1].rpartition(":")[2]))
        yield daemon, proxy
        proxy.close()


async def agree(clock, link, seconds):
    """Ask until the clocks agree to within so many seconds: until nothing else holds up an exchange."""
    while clock.error > seconds:
        clock.add(await link.time(timeout=10.0))


@pytest.mark.parametrize(("there", "back"), [(0.06, 0.0), (0.0, 0.06)])
def test_a_way_that_is_longer_in_one_direction_stays_within_the_error(far, there, back):
    daemon, proxy = far
    proxy.there, proxy.back = there, back

    async def scenario():
        async with await aio.connect(daemon.address) as near_spu, await aio.connect(f"127.0.0.1:{proxy.port}") as spu:
            near = ClockAgreement(await near_spu.link.time(timeout=10.0))
            await agree(near, near_spu.link, 0.005)
            async with spu.session() as session:
                await agree(session.clock, session.lease.link, 0.035)
                now = time.monotonic()
                wrong = abs(session.clock.device_time(now) - near.device_time(now)) / 1000.0
                assert near.error < 0.01 < wrong  # the longer way is not to be seen from one end
                assert wrong <= session.clock.error + near.error
                assert 0.03 <= session.clock.error < 0.1
                # One quick exchange is enough, and the slow ones are as good as forgotten.
                proxy.there = proxy.back = 0.0
                await agree(session.clock, session.lease.link, 0.02)
                now = time.monotonic()
                wrong = abs(session.clock.device_time(now) - near.device_time(now)) / 1000.0
                assert wrong <= session.clock.error + near.error

    asyncio.run(asyncio.wait_for(scenario(), 60.0))


def test_readings_are_scheduled_in_device_time_from_the_host_s(far):
    with connect(far[0].address) as spu, spu.session() as session:
        session.program(Rows(torch.ones(1, 2)), torch.ones(2), damping=0.5)
        for seconds, attempt in time_enough(0.3, ReadInPast):
            with attempt:
                host = time.monotonic() + seconds
                asked, error = session.clock.device_time(host), session.clock.error_at(host)
                reading = session.read(at=asked)
                assert reading.time == asked
                assert time.monotonic() >= host - error
                error += session.clock.error_at(host)  # that of a later agreement, perhaps
                assert session.clock.host_time(reading.time) == pytest.approx(host, abs=error)
                later = session.read(at=session.clock.device_time() + 1000.0 * seconds)
                assert later.epoch == session.clock.epoch


def test_the_heartbeat_keeps_the_agreement_fresh(far, monkeypatch):
    asked, add = Counter(), ClockAgreement.add

    def count(agreement, exchange):
        add(agreement, exchange)
        asked[agreement] += 1

    monkeypatch.setattr(ClockAgreement, "add", count)
    for ttl, attempt in time_enough(0.4, AssertionError):
        with attempt, connect(far[0].address) as spu, spu.session(ttl=ttl) as session:
            before = asked[session.clock]
            eventually(lambda: asked[session.clock] >= before + 3, "3 heartbeats have asked", 4 * ttl)  # noqa: B023


def test_times_from_before_a_restart_cannot_be_used():
    program = Rows(torch.ones(1, 2)), torch.ones(2)
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        old = session.program(*program)
        before = session.read()
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        applied = session.program(*program)
        assert applied.epoch != old.epoch
        for call in (
            lambda: session.read(at=before.time + 5.0),
            lambda: session.program(*program, not_before=old.time),
            lambda: session.solve(*program, analog_time=1.0, not_before=old.time),
            lambda: session.upload(program[0]).program(program[1], not_before=old.time),
            lambda: applied.time < old.time,
        ):
            with pytest.raises(EpochMismatch):
                call()
        assert session.read(at=applied.time).sequence == 1
