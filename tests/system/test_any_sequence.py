"""Whatever a user does in whatever order: updates are right, errors documented, nothing hangs or is left open."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import Tensor, nn

from host_client import TNGD, Session, Spu, connect
from host_client.blocking.thread import client_thread
from host_client.links.remote import ATTEMPT_SECONDS
from spu_link.errors import DeviceBusy, DeviceUnavailable, SpuError, WrongProcess
from spu_link.operators import Rows
from tests import profiles
from tests.daemon import Daemon
from tests.pressure import Undisturbed

LR, DAMPING, LONG = 0.1, 1.0, 60.0
"""λ is the smallest eigenvalue, so after 60 τ the device is at the solution to 1e-26 of where it began."""

TIMEOUT = 5.0
"""Deadline of a call, in seconds."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning"),  # JAX's, in processes that have it
]


class Place:
    """A daemon that can be killed and started again."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.daemon = Daemon(socket, "--clock", "stepped")

    def restart(self) -> None:
        self.daemon.kill()
        self.daemon.close()
        self.daemon = Daemon(self.socket, "--clock", "stepped")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    one = Place(tmp_path_factory.mktemp("d") / "s")
    gc.freeze()  # what is there already is not looked through at each drop
    yield one
    gc.unfreeze()
    one.daemon.close()


def exact(model: nn.Module, x: Tensor) -> Tensor:
    """(F + λI)⁻¹ ∇ℓ, with F = JᵀHJ / b from the dense Jacobian."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().double().flatten() for p in model.parameters()])

    def logits(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        named = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(model, named, (x.double(),))  # type: ignore[no-any-return]

    jacobian = torch.func.jacrev(logits)(flat)
    p = logits(flat).softmax(1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    curvature = torch.einsum("bin,bij,bjm->nm", jacobian, hessian, jacobian) / len(x)
    gradient = torch.cat([q.grad.double().flatten() for q in model.parameters() if q.grad is not None])
    return torch.linalg.solve(curvature + DAMPING * torch.eye(len(flat), dtype=torch.float64), gradient)


class Training(RuleBasedStateMachine):
    """A training in progress, and what its user may do.

    Attributes:
        place: the daemon.
        kills: whether it may be killed.
    """

    place: Place
    kills = False

    @initialize(
        inproc=st.booleans(),
        policy=st.sampled_from(["raise", "wait", "digital"]),
        start=st.sampled_from(["keep", "drive"]),
        seed=st.integers(0, 99),
    )
    def begin(self, *, inproc: bool, policy: str, start: str, seed: int) -> None:
        gc.collect()
        self.before = left_open()
        torch.manual_seed(seed)
        self.inproc, self.policy, self.start, self.killed = inproc, policy, start, False
        self.model: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.saved: tuple[Any, Any] | None = None
        self.spu: Spu | None = None
        self.session: Session | None = None
        self.optimizer: TNGD | None = None
        self.connect()

    @rule(number=st.integers(1, 3))
    def step(self, *, number: int = 1) -> None:
        """An update is the exact one, or nothing has moved and the error is a documented one."""
        for _ in range(number):
            if self.optimizer is not None:
                with in_time():
                    self.one_step(self.optimizer.step)

    @rule(delay=st.sampled_from([0.0, 1e-4, 1e-3, 3e-3, 1e-2]))
    def interrupted_step(self, delay: float) -> None:
        """Ctrl-C: the update was made, or was not."""
        if self.optimizer is None:
            return
        main = threading.main_thread().ident
        assert main is not None
        interrupt = threading.Timer(delay, signal.pthread_kill, (main, signal.SIGINT))
        optimizer = self.optimizer

        def step() -> None:
            try:
                interrupt.start()
                try:
                    optimizer.step()
                finally:
                    interrupt.join()
            except KeyboardInterrupt:
                pass

        with in_time():
            self.one_step(step, perhaps=True)

    @rule()
    def step_while_the_session_is_closed(self) -> None:
        """From another thread."""
        if self.optimizer is None or self.session is None:
            return
        closing = threading.Thread(target=self.session.close)
        with in_time():
            closing.start()
            self.one_step(self.optimizer.step)
            closing.join()

    @rule(twice=st.booleans())
    def close(self, *, twice: bool) -> None:
        with in_time():
            for _ in range(1 + twice):
                if self.session is not None:
                    self.session.close()

    @rule()
    def close_the_connection(self) -> None:
        with in_time():
            if self.spu is not None:
                self.spu.close()

    @rule()
    def reopen(self) -> None:
        """A new session for the optimizer, after the last one."""
        if self.spu is None or self.session is None or self.optimizer is None:
            return self.connect()
        with in_time():
            self.session.close()
            try:
                self.session = self.spu.open_session()
            except SpuError:
                return self.drop()  # the connection is closed, or the daemon has just come back
            self.optimizer.session = self.session
        return None

    @rule()
    def drop(self) -> None:
        """Everything, without closing it, and begin anew."""
        self.session = self.spu = self.optimizer = None
        gc.collect()
        self.connect()

    @rule()
    def drop_the_optimizer(self) -> None:
        self.optimizer = None
        gc.collect()
        if self.session is not None:
            self.optimizer = self.make_optimizer(self.session)

    @rule()
    def save(self) -> None:
        if self.optimizer is not None:
            with in_time():
                self.saved = {n: p.clone() for n, p in self.model.state_dict().items()}, self.optimizer.state_dict()

    @rule()
    def load(self) -> None:
        if self.optimizer is not None and self.saved is not None:
            with in_time():
                self.model.load_state_dict(self.saved[0])
                with suppress(SpuError):  # as the session may be closed
                    self.optimizer.load_state_dict(self.saved[1])

    @rule()
    def fork(self) -> None:
        """The child cannot use what it inherits, and can make its own."""
        with in_time():
            child = os.fork()
            if child == 0:
                os._exit(self.as_child())
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    @precondition(lambda self: self.kills and not self.inproc and not self.killed)
    @rule()
    def kill_and_restart_the_daemon(self) -> None:
        """Once in a sequence, as it takes seconds."""
        self.killed = True
        self.place.restart()

    @rule(reading=st.booleans())
    def call_and_cancel(self, *, reading: bool) -> None:
        """A call that would wait for ever ends at its deadline."""
        if self.session is None:
            return
        with in_time():
            try:
                if reading:
                    self.session.read(at=1e12, timeout=0.05)
                else:
                    self.session.program(Rows(torch.ones(1, 3)), torch.ones(3), not_before=1e12, timeout=0.05)
            except SpuError:
                return
        raise AssertionError("it has not waited")

    def teardown(self) -> None:
        self.close(twice=False)
        self.close_the_connection()
        self.session = self.spu = self.optimizer = None
        gc.collect()
        watch = Undisturbed()
        while left := left_open() - self.before:
            described = [*left, *(f"{name}: {ends_of(name)}" for name in left if "socket:" in name)]
            assert watch.seconds < ATTEMPT_SECONDS + 5.0, described
            time.sleep(0.01)
            gc.collect()

    def connect(self) -> None:
        options: dict[str, Any] = {"clock": "stepped"} if self.inproc else {}
        address = "inproc:" if self.inproc else self.place.daemon.address
        watch = Undisturbed()
        while self.session is None:
            try:
                self.spu = connect(address, timeout=TIMEOUT, **options)
                self.session = self.spu.open_session(ttl=2.0)
            except (DeviceBusy, DeviceUnavailable):  # what was dropped is being closed
                assert watch.seconds < 10.0
                time.sleep(0.01)
        self.optimizer = self.make_optimizer(self.session)

    def make_optimizer(self, session: Session) -> TNGD | None:
        try:
            return TNGD(
                self.model,
                self.criterion,
                session,
                lr=LR,
                damping=DAMPING,
                analog_time=LONG,
                start=self.start,  # type: ignore[arg-type]
                on_loss=self.policy,  # type: ignore[arg-type]
                timeout=TIMEOUT,
                record=lambda event: None,
            )
        except SpuError:
            return None

    def one_step(self, step: Callable[[], object], *, perhaps: bool = False) -> None:
        x, y = torch.randn(5, 3), torch.randint(3, (5,))
        before = self.flat()
        try:
            self.criterion(self.model(x), y).backward()
            expected = before - LR * exact(self.model, x)
            step()
        except SpuError:
            torch.testing.assert_close(self.flat(), before, rtol=0, atol=0)
        else:
            if not (perhaps and torch.equal(self.flat(), before)):
                torch.testing.assert_close(self.flat(), expected, rtol=1e-5, atol=1e-6)
        for p in self.model.parameters():
            p.grad = None
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    def flat(self) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.model.parameters()])

    def as_child(self) -> int:
        faulthandler.register(signal.SIGALRM, chain=True)  # where its threads stand, and then its end
        signal.alarm(30)
        if self.session is not None:
            try:
                self.session.read()
            except WrongProcess:
                pass
            else:
                return 1
            self.session.close()
        with connect("inproc:", clock="stepped") as spu, spu.session() as session:
            value = session.solve(Rows(torch.ones(1, 3)), torch.ones(3), damping=1.0, analog_time=LONG).value
        return 0 if torch.allclose(value, torch.full((3,), 0.25)) else 2


@contextmanager
def in_time() -> Iterator[None]:
    """Nothing waits past its deadline; closing may come on top of it."""
    watch = Undisturbed()
    yield
    assert watch.seconds < 2 * TIMEOUT + 5.0


def left_open() -> set[str]:
    """Threads, tasks of the client's loop, and sockets of this process, but for those that stay with the client."""
    threads = {t.name.partition("-")[0] + str(t.ident) for t in threading.enumerate() if t.name.startswith("driver")}
    tasks = {str(task.get_coro()) for task in list(asyncio.all_tasks(client_thread().loop))}
    sockets = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(("socket:", "/memfd:spu-shared")):
            sockets.add(target)
    return threads | tasks | sockets


def ends_of(name: str) -> str:
    """Kind, address and peer of an open socket of this process, for the message of a failure."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(descriptor.readlink()) == name:
                with socket.socket(fileno=os.dup(int(descriptor.name))) as same:
                    return repr(same)
    return "closed meanwhile"


@pytest.mark.hypothesis
def test_any_sequence_of_actions(place: Place) -> None:
    """Few sequences as a rule; to explore, 200, in which the daemon is killed as well."""

    class Here(Training):
        kills = not settings().derandomize

    Here.place = place
    # A failure that depends on timing does not repeat: shrinking it would end with an error of its own.
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=profiles.examples(8, exploring=200),
            stateful_step_count=12,
            phases=(Phase.generate,),
        ),
    )


@pytest.mark.parametrize("policy", ["raise", "wait", "digital"])
def test_a_training_goes_on_though_its_daemon_is_killed(place: Place, policy: str) -> None:
    training = Training()
    training.place = place
    training.begin(inproc=False, policy=policy, start="keep", seed=0)
    for action in (training.step, training.save, training.kill_and_restart_the_daemon, training.step, training.step):
        action()
    training.reopen()
    training.load()
    training.step()
    training.fork()
    training.step()
    training.teardown()
