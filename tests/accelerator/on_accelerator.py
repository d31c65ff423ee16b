"""Tests with the model, or the emulator, on an accelerator. Run by ``test_accelerator.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from host_client import Session, connect, make_optimizer
from host_client.curvature import Capture
from host_client.curvature.errors import Diverged
from host_client.loop import NoOlderThan
from spu_link.operators import Rows
from spu_link.wire.tensors import copy_to_host
from tests.accelerator.simulated import ToHost, copies_to_host, register, streams
from tests.cases import CASES, Case, Problem
from tests.daemon import Daemon
from tests.spu_server.drivers.test_compute import readings

ACCELERATOR = register()

ELSEWHERE = {
    "positions as an embedding",
    "masked weight",
    "function of one's own",
    "function of one's own of the only parameter",
    "lstm cell",
    "gru cell",
    "lstm",
}
"""Cases that make tensors on the CPU, compute with numpy, or need kernels that torch has for its own accelerators."""

pytestmark = pytest.mark.filterwarnings(
    "ignore::host_client.curvature.errors.CurvatureFallback",
    "ignore:Using padding='same' with even kernel:UserWarning",
)


def test_tensors_come_together_in_one_copy_and_the_host_waits_for_it() -> None:
    here = [torch.randn(3, 5), torch.arange(7), torch.randn(2, 3, dtype=torch.float64).T, torch.ones(3).bfloat16()]
    with copies_to_host() as copies:
        arrived = copy_to_host([here[0].to(ACCELERATOR), here[1], *(tensor.to(ACCELERATOR) for tensor in here[2:])])
    assert len(copies) == 1
    assert copies[0].pinned
    for tensor, expected in zip(arrived, here, strict=True):
        assert torch.equal(tensor, expected)
        assert tensor.is_contiguous()


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in ELSEWHERE], ids=lambda case: case.name)
def test_capture_leaves_everything_on_the_accelerator(case: Case) -> None:
    here, there = case.problem(), _moved(case.problem())
    _pass(here)
    with copies_to_host() as own:
        _pass(there)
        before = len(own)
    captures = [Capture(problem.model, problem.criterion) for problem in (here, there)]
    for problem in (here, there):
        _pass(problem)  # where samples lie is found once
    _pass(here)
    with copies_to_host() as copies:
        _pass(there)
    waits = case.name.startswith("gpt2") or _leaves_out(there)
    assert [copy.nbytes for copy in copies[before:]] in ([[], [1], [8]] if waits else [[]])
    expected, found = (capture.operator.dense() for capture in captures)
    assert found.device == ACCELERATOR
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-12)


def test_an_input_that_is_not_finite_is_named_there_too_and_the_next_pass_is_right() -> None:
    """There, outputs are not looked at beforehand, for that would be waited for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(ACCELERATOR)
    capture = Capture(model, nn.CrossEntropyLoss())
    inputs, targets = torch.randn(6, 5), torch.randint(3, (6,)).to(ACCELERATOR)
    bad = inputs.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"step 1.*input"):
        capture.criterion(model(bad.to(ACCELERATOR)), targets)  # type: ignore[operator]
    capture.criterion(model(inputs.to(ACCELERATOR)), targets)  # type: ignore[operator]
    assert capture.operator.dense().isfinite().all()


def _leaves_out(problem: Problem) -> bool:
    """Return whether targets of several positions a sample may be ignored: how many are not is asked for."""
    classes = isinstance(problem.criterion, nn.CrossEntropyLoss) and not problem.targets.is_floating_point()
    return classes and problem.targets.numel() > len(problem.inputs)


def _moved(problem: Problem) -> Problem:
    moved = (one.to(ACCELERATOR) for one in (problem.model, problem.criterion, problem.inputs, problem.targets))
    return Problem(*moved, problem.call)


def _pass(problem: Problem) -> None:
    torch.manual_seed(1)
    problem.loss().backward()


@dataclass
class Training:
    """A small network at a place, its data, and an optimizer for it."""

    place: torch.device
    name: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).to(self.place)
        self.criterion = nn.CrossEntropyLoss()
        self.inputs, self.targets = torch.randn(4, 16, 1, 8, 8), torch.randint(10, (4, 16))
        self.optimizer = make_optimizer(self.name, self.model, self.criterion, lr=0.1, **self.options)

    def steps(self, first: int = 0, end: int = 4) -> list[list[ToHost]]:
        """Train; what came to the host in each step."""
        torch.manual_seed(first)
        gathered = []
        for x, y in zip(self.inputs[first:end].to(self.place), self.targets[first:end].to(self.place), strict=True):
            with copies_to_host() as copies:
                self.optimizer.zero_grad()
                self.criterion(self.model(x), y).backward()
                self.optimizer.step()
                gathered.append(list(copies))
        return gathered

    def parameters(self) -> Tensor:
        """All of them, on the CPU."""
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().cpu()


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A stepped daemon, on a Unix socket and a port."""
    options = ("--clock", "stepped", "--listen", "127.0.0.1:0")
    with Daemon(tmp_path_factory.mktemp("d") / "s", *options) as daemon:
        yield daemon


@pytest.fixture(params=["in-process", "shared-memory", "grpc"])
def session(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Session]:
    """A session of a stepped device, on each way that bytes can take."""
    way = request.param
    if way == "in-process":
        spu = connect("inproc:", clock="stepped")
    else:
        spu = connect(daemon.address if way == "shared-memory" else daemon.addresses[1])
    with spu, spu.session() as session:
        yield session
        assert max(session.bytes_by_path, key=session.bytes_by_path.__getitem__) == way


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"curvature": "mc"},
        {"curvature": "empirical", "momentum": 0.9},
        {"precision": "int16"},
        {"precision": "float16"},
        {"freshness": NoOlderThan(programs=1)},
        {"readings": 2, "spacing": 1.0},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_a_step_brings_operator_and_gradient_in_one_asynchronous_copy_each(
    session: Session, options: dict[str, Any]
) -> None:
    options = {"session": session, "damping": 1.0, "analog_time": 5.0, **options}
    here, there = (Training(place, "tngd", options) for place in (CPU, ACCELERATOR))
    assert here.steps() == [[]] * 4
    gathered = there.steps()
    assert torch.equal(there.parameters(), here.parameters())
    for copies in gathered[1:]:  # in the first step F is verified
        assert [copy.pinned for copy in copies].count(True) == 2
        (factor,) = [copy for copy in copies if not copy.pinned]  # of the loss: one number
        assert factor.nbytes == 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ngd", {}),
        ("ngd-cg", {}),
        ("ngd-woodbury", {}),
        ("kfac", {}),
        ("ngd", {"trust_region": 1e-3}),
        ("ngd-woodbury", {"betas": (0.5, 0.9), "curvature_every": 2}),
    ],
    ids=str,
)
def test_digital_methods_train_there_as_here(name: str, options: dict[str, Any]) -> None:
    here, there = (Training(place, name, {"damping": 1.0, **options}) for place in (CPU, ACCELERATOR))
    here.steps()
    there.steps()
    torch.testing.assert_close(there.parameters(), here.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ngd-woodbury", {"momentum": 0.9}),
        ("ngd-woodbury", {"betas": (0.5, 0.9)}),
        ("ngd-woodbury", {"spring": 0.9}),
    ],
    ids=str,
)
def test_a_model_moves_there_when_its_optimizer_has_been_made(name: str, options: dict[str, Any]) -> None:
    here, there = (Training(CPU, name, {"damping": 1.0, **options}) for _ in range(2))
    there.model.to(ACCELERATOR)
    there.place = ACCELERATOR
    here.steps()
    there.steps()
    torch.testing.assert_close(there.parameters(), here.parameters())


@pytest.mark.parametrize("embedding", ["sample", "block", "kronecker"])
def test_small_devices_train_a_model_there_as_here(embedding: Any) -> None:
    results = []
    for place in (CPU, ACCELERATOR):
        with connect("inproc:", clock="stepped", embedding=embedding) as spu, spu.session() as session:
            training = Training(place, "tngd", {"session": session, "damping": 1.0, "analog_time": 5.0})
            training.steps()
            results.append(training.parameters())
    torch.testing.assert_close(*results)


def test_a_run_goes_on_there_from_its_state_to_the_bit() -> None:
    def trained(first: int, end: int, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        with connect("inproc:", clock="stepped", compute=str(ACCELERATOR)) as spu, spu.session() as session:
            options = {"session": session, "damping": 1.0, "analog_time": 5.0, "momentum": 0.9, "noise": 1e-3}
            training = Training(ACCELERATOR, "tngd", options)
            if state is not None:
                training.model.load_state_dict(state["model"])
                training.optimizer.load_state_dict(state["optimizer"])
            training.steps(first, end)
            held = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
            return training.parameters(), tree_map_only(Tensor, lambda tensor: tensor.cpu().clone(), held)

    whole, _ = trained(0, 4)
    _, half = trained(0, 2)
    assert torch.equal(trained(2, 4, half)[0], whole)


def test_the_other_thread_s_copies_come_after_what_the_caller_has_asked_for() -> None:
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        drive = torch.ones(3).to(ACCELERATOR)
        streams.clear()
        session.program(Rows(torch.eye(3).to(ACCELERATOR)), drive, damping=1.0)
        assert streams[:2] == [("record", 0), ("wait", 0)]
        assert "synchronize" in [what for what, _ in streams[2:]]


def test_the_emulator_computes_there() -> None:
    for here, there in zip(readings("cpu"), readings(str(ACCELERATOR)), strict=True):
        assert there.device.type == "cpu"
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
    assert all(bool(value.isfinite().all()) for value in readings(str(ACCELERATOR), noise=0.1))
