"""The curvature travels while the backward pass still runs."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from torch import nn

from host_client import TNGD, Session, connect
from tests.cases import Problem
from tests.host_client.optimizers.ahead import Ahead
from tests.host_client.optimizers.training import flat, train
from tests.system.raw import eventually


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Ahead:
    return Ahead(monkeypatch)


def optimizer_of(problem: Problem, session, **options) -> TNGD:
    return TNGD(problem.model, problem.criterion, session, lr=0.3, damping=0.1, analog_time=2.0, **options)


def test_every_step_of_the_ordinary_loop_uses_what_was_sent_ahead(
    problem: Problem, session: Session, ahead: Ahead
) -> None:
    train(problem, optimizer_of(problem, session), 3)
    assert ahead.became(3, 3, 0)


def test_gradients_may_be_dropped_between_forward_and_backward(
    problem: Problem, session: Session, ahead: Ahead
) -> None:
    optimizer = optimizer_of(problem, session)
    for _ in range(3):
        loss = problem.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ahead.became(3, 3, 0)


def test_dropped_gradients_abandon_it(problem: Problem, session: Session, ahead: Ahead) -> None:
    optimizer = optimizer_of(problem, session)
    problem.loss().backward()
    optimizer.zero_grad()
    assert ahead.became(1, 0, 1)


def test_another_forward_pass_abandons_it_and_evaluation_does_not(
    problem: Problem, session: Session, ahead: Ahead
) -> None:
    optimizer = optimizer_of(problem, session)
    problem.loss()
    problem.model.eval()
    problem.loss()
    problem.model.train()
    assert ahead.became(1, 0, 0)
    problem.loss().backward()
    optimizer.step()
    assert ahead.became(2, 1, 1)


def test_a_session_replaced_abandons_it(problem: Problem, session: Session, ahead: Ahead) -> None:
    optimizer = optimizer_of(problem, session)
    problem.loss().backward()
    optimizer.session = session
    assert ahead.became(1, 0, 1)
    optimizer.step()
    assert optimizer.last_reading is not None


def test_a_precision_changed_meanwhile_holds(problem: Problem, session: Session, ahead: Ahead) -> None:
    optimizer = optimizer_of(problem, session)
    problem.loss().backward()
    optimizer.hyperparameters["precision"] = "float16"
    optimizer.step()
    assert ahead.became(1, 0, 1)


def test_the_model_does_not_keep_the_optimizer_alive(problem: Problem, session: Session, ahead: Ahead) -> None:
    optimizer = weakref.ref(optimizer_of(problem, session))
    gc.collect()
    assert optimizer() is None
    problem.loss()
    assert ahead.became(0, 0, 0)


class SlowProxy:
    """Forwards connections to a port of this machine at so many bytes a second."""

    def __init__(self, port: int, rate: float) -> None:
        self.sent = 0
        self._target, self._rate = port, rate
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = server.result(10.0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(self._slowly(reader, there_writer), self._fast(there_reader, writer))
        finally:
            for one in (writer, there_writer):
                one.close()
                with suppress(OSError):  # the other end has gone before
                    await one.wait_closed()

    async def _slowly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(len(data) / self._rate)
            writer.write(data)
            await writer.drain()
            self.sent += len(data)
        writer.close()

    async def _fast(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()


@pytest.fixture
def proxy(daemon) -> Iterator[SlowProxy]:
    one = daemon("--listen", "127.0.0.1:0", "--clock", "stepped")
    proxy = SlowProxy(int(one.addresses[1].rpartition(":")[2]), rate=20e6)
    yield proxy
    proxy.close()


def test_over_a_slow_link_most_bytes_have_left_before_the_step(proxy: SlowProxy) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 10))
    inputs, targets = torch.randn(256, 400), torch.randint(10, (256,))
    criterion = nn.CrossEntropyLoss()
    start = flat(model)
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        problem = Problem(model, criterion, inputs, targets)
        train(problem, optimizer_of(problem, session), 1)
        expected = flat(model)
    nn.utils.vector_to_parameters(start, model.parameters())
    with connect(f"127.0.0.1:{proxy.port}") as spu, spu.session() as session:
        optimizer = optimizer_of(problem, session)
        before = proxy.sent
        loss = problem.loss()
        assert optimizer.capture is not None
        nbytes = optimizer.capture.operator.nbytes
        eventually(lambda: proxy.sent - before > 0.9 * nbytes, "the operator is on its way without a step")
        optimizer.zero_grad()
        loss.backward()
        begin = time.monotonic()
        optimizer.step()
        print(f"step {time.monotonic() - begin:.3f} s, operator {nbytes / 1e6:.1f} MB")
        assert proxy.sent - before < 1.5 * nbytes + 2 * 4 * flat(model).numel()  # once
        assert dict(session.bytes_by_path) == {"grpc": nbytes + 4 * flat(model).numel()}
    torch.testing.assert_close(flat(model), expected, rtol=1e-5, atol=1e-6)
