import copy
from typing import Any

import pytest
import torch

from host_client import NGD, TNGD, Session, connect, settling_time
from host_client.record.events import Event, Updated
from spu_link.errors import DeviceUnavailable
from tests.cases import Problem
from tests.host_client.optimizers.fakes import Recorder
from tests.host_client.optimizers.training import flat, train
from tests.torch_state import count_hooks


def _optimizer(problem: Problem, session: Any, **options: Any) -> TNGD:
    return TNGD(problem.model, problem.criterion, session, **{"lr": 0.3, "damping": 0.1, "analog_time": 1.0, **options})


@pytest.mark.parametrize("start", ["keep", "drive"])
def test_long_analog_time_is_natural_gradient_descent(problem: Problem, session: Session, start: str) -> None:
    other = copy.deepcopy(problem)
    train(problem, _optimizer(problem, session, analog_time=500.0, start=start, momentum=0.5), 5)
    train(other, NGD(other.model, other.criterion, lr=0.3, damping=0.1, momentum=0.5), 5)
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_analog_time_is_gradient_descent(problem: Problem, session: Session, momentum: float) -> None:
    other = copy.deepcopy(problem)
    train(problem, _optimizer(problem, session, analog_time=0.0, start="drive", momentum=momentum), 5)
    train(other, torch.optim.SGD(other.model.parameters(), lr=0.3, momentum=momentum), 5)
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("start", ["keep", "drive"])
def test_an_automatic_analog_time_is_that_of_each_step(problem: Problem, start: str) -> None:
    recorder = Recorder()
    train(problem, _optimizer(problem, recorder, analog_time="auto", start=start), 3)
    last = None
    for asked in recorder.asked:
        program = asked["program"]
        expected = settling_time(program.operator, program.drive, program.damping, last)
        assert asked["sampling"].analog_time == expected > 0.0
        last = program.drive if start == "keep" else None  # the recorder answers with it


def test_with_an_automatic_analog_time_training_goes_nearly_as_far_as_with_a_solver(
    problem: Problem, session: Session
) -> None:
    other = copy.deepcopy(problem)
    losses = train(problem, _optimizer(problem, session, analog_time="auto", start="drive"), 20)
    exact = train(other, NGD(other.model, other.criterion, lr=0.3, damping=0.1), 20)
    assert losses[-1] < 2.0 * exact[-1] < losses[0] / 10


def test_an_automatic_analog_time_needs_damping_and_a_device_without_embedding(problem: Problem) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=r"Invalid damping: 0\.0; a bound on the analog time needs more than 0"):
        train(problem, _optimizer(problem, recorder, analog_time="auto", damping=0.0), 1)
    assert not recorder.asked
    with pytest.raises(ValueError, match="Invalid analog_time: 'soon'; it must be at least 0, or 'auto'"):
        _optimizer(problem, recorder, analog_time="soon")
    with (
        connect("inproc:", cells=100, embedding="sample") as spu,
        spu.session() as session,
        pytest.raises(ValueError, match="Invalid analog_time: 'auto'; with embedding 'sample'"),
    ):
        _optimizer(problem, session, analog_time="auto")


def test_training_with_delay_and_noise_brings_the_loss_down(problem: Problem, session: Session) -> None:
    losses = train(problem, _optimizer(problem, session, analog_time=5.0, delay=1.0, noise=1e-6), 20)
    assert losses[-1] < losses[0] / 2


def test_the_first_solve_starts_from_the_drive_and_the_next_ones_from_where_the_device_stands(
    problem: Problem,
) -> None:
    recorder = Recorder()
    train(problem, _optimizer(problem, recorder), 3)
    assert [asked["program"].start for asked in recorder.asked] == ["keep"] * 3
    assert recorder.asked[0]["resume"] is None  # nothing to go on from: the drive


def test_every_solve_can_start_from_the_drive(problem: Problem) -> None:
    recorder = Recorder()
    train(problem, _optimizer(problem, recorder, start="drive"), 3)
    assert [asked["program"].start for asked in recorder.asked] == ["drive"] * 3


def test_the_curvature_travels_in_16_bits_where_asked(problem: Problem, session: Session) -> None:
    other, alike = copy.deepcopy(problem), {"analog_time": 5.0, "start": "drive"}
    train(problem, _optimizer(problem, session, **alike), 3)
    in_full = session.uploaded_bytes
    train(other, _optimizer(other, session, precision="int16", **alike), 3)
    vectors = 3 * sum(p.nbytes for p in problem.model.parameters() if p.requires_grad)
    assert 2 * (session.uploaded_bytes - in_full - vectors) == in_full - vectors
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=1e-3, atol=1e-4)


def test_the_record_names_every_reading_of_an_average_and_the_age_of_the_first(
    problem: Problem, session: Session
) -> None:
    events: list[Event] = []
    averaged = {"analog_time": 2.0, "readings": 3, "spacing": 0.5, "record": events.append}
    train(problem, _optimizer(problem, session, **averaged), 2)
    updates = [one for one in events if isinstance(one, Updated)]
    assert [one.readings for one in updates] == [(1, 2, 3), (4, 5, 6)]
    assert [one.staleness for one in updates] == pytest.approx([1.0, 1.0])


def test_the_device_gets_all_hyperparameters_as_they_are_now(problem: Problem) -> None:
    recorder = Recorder()
    optimizer = _optimizer(problem, recorder, noise=1e-3)
    train(problem, optimizer, 1)
    optimizer.hyperparameters.update(damping=0.2, noise=0.0, analog_time=4.0)
    train(problem, optimizer, 1)
    settings = [
        (asked["program"].damping, asked["program"].noise, asked["sampling"].analog_time) for asked in recorder.asked
    ]
    assert settings == [(0.1, 1e-3, 1.0), (0.2, 0.0, 4.0)]


def test_the_last_reading_is_at_hand(problem: Problem) -> None:
    optimizer = _optimizer(problem, Recorder())
    assert optimizer.last_reading is None
    train(problem, optimizer, 2)
    assert optimizer.last_reading is not None
    assert optimizer.last_reading.sequence == 2


def test_a_failing_device_leaves_everything_as_it_was(problem: Problem) -> None:
    recorder = Recorder()
    optimizer = _optimizer(problem, recorder, momentum=0.9)
    train(problem, optimizer, 1)
    parameters, state = flat(problem.model), copy.deepcopy(optimizer.state_dict())
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    recorder.fails = True
    with pytest.raises(DeviceUnavailable):
        optimizer.step()
    torch.testing.assert_close(flat(problem.model), parameters, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    recorder.fails = False
    optimizer.step()  # with the same gradients
    assert not torch.equal(flat(problem.model), parameters)


def test_a_session_replaced_starts_from_the_last_reading(problem: Problem) -> None:
    optimizer = _optimizer(problem, Recorder())
    train(problem, optimizer, 2)
    assert optimizer.last_reading is not None
    reading = optimizer.last_reading.value
    other = Recorder()
    optimizer.session = other  # type: ignore[assignment]
    assert optimizer.last_reading is None
    train(problem, optimizer, 1)
    torch.testing.assert_close(other.asked[0]["resume"], reading, rtol=0, atol=0)


def test_repr_lists_all_hyperparameters(problem: Problem) -> None:
    shown = repr(_optimizer(problem, Recorder(), delay=0.25, noise=1e-6))
    for part in ("TNGD", "lr: 0.3", "damping: 0.1", "analog_time: 1.0", "delay: 0.25", "noise: 1e-06", "start: keep"):
        assert part in shown
    for part in ("readings: 1", "period: None", "combine: average", "freshness: program", "on_loss: raise"):
        assert part in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"analog_time": -1.0}, "Invalid analog_time: -1.0"),
        ({"delay": -1.0}, "Invalid delay: -1.0"),
        ({"noise": float("nan")}, "Invalid noise: nan"),
        ({"start": "zero"}, "Invalid start: 'zero'; it must be one of 'keep', 'drive'"),
        (
            {"precision": "int8"},
            "Invalid precision: 'int8'; it must be one of 'float32', 'float16', 'bfloat16', 'int16', None",
        ),
    ],
)
def test_hyperparameters_out_of_range(problem: Problem, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _optimizer(problem, Recorder(), **options)
    assert not count_hooks(problem.model)
