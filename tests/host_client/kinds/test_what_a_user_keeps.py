"""Nothing that belongs to a step outlives it, whatever the user keeps: no more than with Adam."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import KFAC, NGD, TNGD, connect
from host_client.curvature.kronecker.factors import ReplayedBatch
from spu_link.errors import InvalidProgram, SessionExpired
from spu_link.operators import Operator
from tests.torch_state import count_hooks, function_modes

STEPS, MAX_STEPS = 6, 200
WIDTH, SAMPLES = 64, 32
FACTOR_BYTES = 2 * WIDTH * SAMPLES * 4
"""A lower bound of the bytes of one step's factor or activations."""


@pytest.fixture(scope="module", autouse=True)
def looked_through() -> Iterator[None]:
    """Only what is made from here on is looked through: the rest is a million objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def spu() -> Iterator[Any]:
    with connect("inproc:", clock="stepped") as one:
        yield one


class Run:
    """An ordinary training, some of whose things are kept."""

    def __init__(self, make: Callable[[nn.Module, nn.Module], torch.optim.Optimizer]) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = make(self.model, self.criterion)
        self.kept: list[Any] = []

    def loss(self) -> tuple[Tensor, Tensor]:
        logits = self.model(torch.randn(SAMPLES, WIDTH))
        return logits, self.criterion(logits, torch.randint(3, (SAMPLES,)))

    def step(self, keep: Callable[[Run, Tensor, Tensor], Any]) -> None:
        logits, loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.kept.append(keep(self, logits, loss))

    def grown(self, keep: Callable[[Run, Tensor, Tensor], Any], limit: float = math.inf) -> int:
        """Bytes of tensors that each of the later steps has left behind.

        A few more may be on the way, or at the device, than when the counting began. Where it seems to be more than
        `limit`, further steps show whether each leaves something.
        """
        for _ in range(2):
            self.step(keep)
        before, steps = tensor_bytes(), 0
        while True:
            for _ in range(max(STEPS, steps)):
                self.step(keep)
                steps += 1
            left = (tensor_bytes() - before) // steps
            if left <= limit or steps > MAX_STEPS:
                return left


def tensor_bytes() -> int:
    """Bytes of all storages that Python's tensors refer to; what autograd alone holds is not among them."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if issubclass(type(one), Tensor) and one.layout is torch.strided and one.device.type == "cpu":
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def operators() -> list[object]:
    """All operators, and batches of K-FAC, that something refers to."""
    gc.collect()
    return [one for one in gc.get_objects() if issubclass(type(one), (Operator, ReplayedBatch))]


def running_sum(run: Run, logits: Tensor, loss: Tensor) -> Tensor:
    return (run.kept[-1] if run.kept else 0.0) + loss  # type: ignore[no-any-return]


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whichever it is, with its traceback
        return error
    raise AssertionError("nothing was raised")


def failed_step(run: Run, logits: Tensor, loss: Tensor) -> BaseException:
    """An error in the middle of a step, and one in the criterion."""
    _, other = run.loss()
    other.backward()
    for parameter in run.model.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_(torch.nan)
    error = raised(run.optimizer.step)
    run.optimizer.zero_grad()
    return error


def failed_loss(run: Run, logits: Tensor, loss: Tensor) -> BaseException:
    error = raised(
        lambda: run.criterion(run.model(torch.full((SAMPLES, WIDTH), torch.nan)), torch.zeros(SAMPLES).long())
    )
    run.optimizer.zero_grad()
    return error


def closure(run: Run, logits: Tensor, loss: Tensor) -> Callable[[], Tensor]:
    def evaluate() -> Tensor:
        run.optimizer.zero_grad()
        loss = run.loss()[1]
        loss.backward()
        return loss

    run.optimizer.step(evaluate)  # type: ignore[arg-type]
    run.optimizer.zero_grad()
    return evaluate


KEPT: dict[str, Callable[[Run, Tensor, Tensor], Any]] = {
    "losses": lambda run, logits, loss: loss,
    "a running sum of losses": running_sum,
    "detached losses": lambda run, logits, loss: loss.detach(),
    "logits": lambda run, logits, loss: logits,
    "losses that are not differentiated": lambda run, logits, loss: run.loss()[1],
    "outputs of an evaluation": lambda run, logits, loss: (
        run.model.eval()(torch.ones(1, WIDTH)) + 0 * bool(run.model.train())
    ),
    "closures, and what they have returned": closure,
    "copies of the model": lambda run, logits, loss: [copy.deepcopy(run.model)][:0],
}


def adam(model: nn.Module, criterion: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def makers(session: Any) -> dict[str, Callable[[nn.Module, nn.Module], torch.optim.Optimizer]]:
    options: dict[str, Any] = {"lr": 1e-3, "damping": 0.1}
    return {
        "tngd": lambda m, c: TNGD(m, c, session, analog_time=2.0, **options),
        "tngd, as it comes": lambda m, c: TNGD(
            m,
            c,
            session,
            analog_time=2.0,
            freshness="newest",
            readings=3,
            spacing=1.0,
            record=lambda event: None,
            **options,
        ),
        "woodbury": lambda m, c: NGD(m, c, **options),
        "kfac": lambda m, c: KFAC(m, c, **options),
    }


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", ["tngd", "tngd, as it comes", "woodbury", "kfac"])
def test_it_keeps_no_more_than_with_adam(spu: Any, name: str, kept: str) -> None:
    with spu.session() as session:
        own, adams = Run(makers(session)[name]), Run(adam)
        limit = adams.grown(KEPT[kept]) + FACTOR_BYTES // 8
        assert own.grown(KEPT[kept], limit) <= limit
        if "not differentiated" in kept:
            own.kept.pop()  # the last one may still be
        device = set(map(id, operators()))
        own.kept.clear()
        assert device == set(map(id, operators()))  # none was kept


@pytest.mark.parametrize("failure", [failed_step, failed_loss])
@pytest.mark.parametrize("name", ["tngd", "tngd, as it comes", "woodbury"])
def test_errors_with_their_tracebacks_keep_no_operator(spu: Any, name: str, failure: Callable[..., Any]) -> None:
    with spu.session() as session:
        run = Run(makers(session)[name])
        run.step(failure)
        before = len(operators())
        for _ in range(3):
            run.step(failure)
        assert all(isinstance(error, Exception) and error.__traceback__ for error in run.kept)
        assert len(operators()) <= before


def test_the_error_of_a_lost_device_does_not_grow_with_each_step_without_it(spu: Any) -> None:
    with connect("inproc:", clock="stepped") as other, other.session() as session:
        run = Run(lambda m, c: TNGD(m, c, session, analog_time=2.0, lr=1e-3, damping=0.1, on_loss="digital"))
        run.step(lambda *_: None)
        other.halt("somebody has stopped it")
        for _ in range(2):
            run.step(lambda *_: None)
        before = tensor_bytes(), len(operators())
        for _ in range(4):
            run.step(lambda *_: None)
        assert (tensor_bytes(), len(operators())) == before


@pytest.mark.parametrize("what", ["reading", "state_dict", "optimizer", "session", "error of the session"])
def test_what_is_kept_of_a_training_that_is_over_holds_no_operator(what: str) -> None:
    before = set(map(id, operators()))
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        run = Run(makers(session)["tngd"])
        for _ in range(3):
            run.step(lambda *_: None)
        optimizer = run.optimizer
        assert isinstance(optimizer, TNGD)
        kept = {
            "reading": lambda: optimizer.last_reading,
            "state_dict": optimizer.state_dict,
            "optimizer": lambda: optimizer,
            "session": lambda: (spu, session),
            "error of the session": lambda: raised(lambda: session.read(at=-1.0)),
        }[what]()
        if what == "reading":
            assert kept.value.untyped_storage().nbytes() == kept.value.nbytes
            weak = weakref.ref(optimizer)
            del optimizer, run
            gc.collect()
            assert weak() is None
    run = optimizer = spu = session = None  # type: ignore[assignment]
    assert kept is not None
    assert set(map(id, operators())) <= before


def test_an_optimizer_keeps_no_more_between_steps_than_its_momentum_and_its_last_reading(spu: Any) -> None:
    def held(make: Callable[[nn.Module, nn.Module], torch.optim.Optimizer]) -> int:
        run = Run(make)
        run.step(lambda *_: None)
        run.optimizer.zero_grad()
        run.kept.clear()
        found = tensor_bytes()
        parameters = sum(p.nbytes for p in run.model.parameters())
        run.optimizer.__dict__.clear()
        return (found - tensor_bytes()) * 100 // parameters

    with spu.session() as session:
        assert held(makers(session)["tngd"]) <= 215 >= held(adam)  # percent of the parameters' bytes


def test_a_kept_operator_holds_no_graph(spu: Any) -> None:
    with spu.session() as session:
        run = Run(makers(session)["tngd"])
        run.loss()
        assert isinstance(run.optimizer, TNGD)
        assert run.optimizer.capture is not None
        operator = run.optimizer.capture.operator
        found: list[Tensor] = []
        operator.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        assert found
        assert not any(one.requires_grad for one in found)


@pytest.mark.parametrize("name", ["tngd", "tngd, as it comes", "woodbury", "kfac"])
def test_a_model_in_training_is_saved_and_copied_without_its_optimizer(spu: Any, name: str) -> None:
    with spu.session() as session:
        run = Run(makers(session)[name])
        run.step(lambda *_: None)
        buffer = io.BytesIO()
        torch.save(run.model, buffer)
        buffer.seek(0)
        others = [
            torch.load(buffer, weights_only=False),
            copy.deepcopy(run.model),
            pickle.loads(pickle.dumps(run.model)),
        ]
        criterion = copy.deepcopy(run.criterion)
        run.step(lambda *_: None)
        for other in others:
            criterion(other(torch.randn(4, WIDTH)), torch.zeros(4).long()).backward()
            torch.optim.SGD(other.parameters(), lr=0.1).step()
        run.step(lambda *_: None)


@pytest.mark.parametrize("end", ["closed", "dropped"])
@pytest.mark.parametrize(
    "name", ["tngd", "tngd, as it comes", "woodbury", "kfac", "a function", "in the model", "given"]
)
def test_every_hook_is_gone_with_the_capture(spu: Any, name: str, end: str) -> None:
    options: dict[str, Any] = {"lr": 1e-3, "damping": 0.1, "analog_time": 1.0, "record": lambda event: None}
    with spu.session() as session:
        more: dict[str, Callable[..., Any]] = {
            "a function": lambda m, c: TNGD(m, nn.functional.cross_entropy, session, **options),
            "in the model": lambda m, c: TNGD(m, None, session, **options),
            "given": lambda m, c: TNGD(m, c, session, curvature=lambda: None, **options),  # type: ignore[arg-type,return-value]
        }
        run = Run((makers(session) | more)[name])
        run.model(torch.randn(4, WIDTH))  # a function of torch is watched from here on
        if end == "closed" and name != "given":
            run.optimizer.close()  # type: ignore[attr-defined]
        else:
            del run.optimizer
            gc.collect()
        assert not count_hooks(run.model, run.criterion)
        assert not function_modes()


@pytest.mark.parametrize("call", ["program", "upload"])
def test_errors_of_calls_keep_no_operator(spu: Any, call: str) -> None:
    from spu_link.operators import Rows

    with spu.session() as session:
        if call == "upload":
            session.close()
        errors = []
        for _ in range(2):
            operator = Rows(torch.full((2, 3), torch.nan))
            weak = weakref.ref(operator)
            with pytest.raises(InvalidProgram if call == "program" else SessionExpired) as caught:
                session.program(operator, torch.ones(3)) if call == "program" else session.upload(operator)
            errors.append(caught.value)
            del operator, caught
            gc.collect()
            assert weak() is None
