import csv
import gc
import itertools
import json
import weakref
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import nn

from host_client import Diverged, connect
from host_client.optimizers import make_optimizer
from host_client.record import DelayMeter, Differentiated, Updated, load
from spu_lab.local_daemon import DaemonFailed, local_daemon
from spu_lab.tasks.task import Examples, Task
from spu_lab.timeline import Window, lay_out
from spu_lab.timeline.turns import measure_turns
from spu_lab.training.follow import Line
from spu_lab.training.loop import Evaluation, Run, StepMetrics, Training
from spu_lab.training.report import moving_average, run_table
from spu_lab.training.results import COLUMNS, summary
from spu_lab.training.runner import run, run_in, write_report
from spu_lab.training.settings import LEARNING_RATES, Settings
from spu_link.errors import DeviceUnavailable
from tests.daemon import Daemon


@pytest.fixture(scope="module")
def stripes() -> Task:
    """Images of 8 × 8 with one bright row of four: a small network learns which in a few steps."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (400,), generator=generator)
    inputs = 0.1 * torch.randn(400, 1, 8, 8, generator=generator)
    inputs[torch.arange(400), 0, 2 * targets] += 1
    return Task(
        name="stripes",
        outputs=4,
        network=lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
        ),
        criterion=nn.CrossEntropyLoss(),
        prepare=lambda x: x,
        train=Examples(inputs[:200], targets[:200]),
        validation=Examples(inputs[200:300], targets[200:300]),
        test=Examples(inputs[300:], targets[300:]),
    )


def quiet() -> Console:
    return Console(file=StringIO())


def test_nothing_of_a_run_and_its_device_outlives_it(stripes: Task) -> None:
    made = []

    def make(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(*arguments, **options)
        made.extend(map(weakref.ref, (optimizer, arguments[1], options["session"], options["session"].aio.lease.link)))
        return optimizer

    settings = Settings(optimizer="tngd", batch_size=20, steps=2, analog_time=5.0)
    for _ in range(3):
        with connect("inproc:", clock="stepped") as spu:
            run(stripes, settings, spu, label="TNGD", console=quiet(), make=make)
    del spu
    gc.collect()
    # The first device of a process may have been there before what stays was excluded from garbage collection.
    assert [type(one()).__name__ for one in made[4:] if one() is not None] == []


def test_training_through_a_daemon_learns_and_leaves_a_full_record(stripes: Task, free: Daemon, tmp_path: Path) -> None:
    settings = Settings(optimizer="tngd", lr=0.5, batch_size=20, steps=12, analog_time=5.0)
    with connect(free.address) as spu:
        result = run(stripes, settings, spu, label="TNGD", console=quiet(), csv=tmp_path / "steps.csv")
        write_report(tmp_path, result, stripes, spu, label="TNGD")

    rows = list(csv.DictReader((tmp_path / "steps.csv").read_text().splitlines()))
    assert list(rows[0]) == list(COLUMNS)
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["epoch"]) for row in rows] == [1] * 10 + [2] * 2
    assert all(int(row["uploaded_bytes"]) > 0 and float(row["staleness_tau"]) >= 0 for row in rows)
    times = [float(row["device_time_tau"]) for row in rows]
    assert all(b - a >= 5.0 for a, b in itertools.pairwise(times))
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])

    content = json.loads((tmp_path / "run.json").read_text())
    assert {"python", "torch", "numpy", "grpcio", "tngd-spu"} <= set(content["versions"])
    assert content["machine"]["cores"] >= 1
    assert content["device"]["clock"] == "free"
    assert content["device"]["rate_tau_per_s"] == 1000.0
    entry = content["runs"]["TNGD"]
    assert entry["settings"] == settings.model_dump()
    assert entry["results"]["test_accuracy"] == result.final("test").accuracy > 0.9
    assert entry["results"]["explicit_jacobian_bytes"] == 20 * 4 * result.parameters * 4
    assert entry["results"]["bytes_per_upload"] < entry["results"]["explicit_jacobian_bytes"]
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "ngd", "ngd-cg", "ngd-woodbury", "kfac"])
def test_digital_optimizers_need_no_device(stripes: Task, optimizer: str) -> None:
    settings = Settings.model_validate({"optimizer": optimizer, "batch_size": 20, "steps": 3})
    result = run(stripes, settings, None, label=optimizer, console=quiet())
    assert len(result.steps) == 3
    assert result.bytes_per_upload == 0
    assert result.steps[0].device_time is None


def test_with_the_digital_solution_the_loss_is_that_of_the_device_left_to_settle(stripes: Task, free: Daemon) -> None:
    shared = {"lr": 0.3, "damping": 0.5, "batch_size": 20, "steps": 4}
    digital = run(stripes, Settings(optimizer="ngd-woodbury", **shared), None, label="NGD", console=quiet())
    with connect(free.address) as spu:
        analog = run(stripes, Settings(analog_time=60.0, **shared), spu, label="TNGD", console=quiet())
    expected = [step.loss for step in digital.steps]
    assert [step.loss for step in analog.steps] == pytest.approx(expected, rel=1e-4)


def test_a_run_leaves_a_record_of_what_happened_when(stripes: Task, tmp_path: Path) -> None:
    settings = Settings(optimizer="ngd-woodbury", batch_size=20, steps=3)
    run_in(tmp_path, stripes, settings, None, label="NGD", console=quiet(), options={})
    record = load(tmp_path)
    assert record.header["settings"] == settings.model_dump()
    assert record.header["versions"]["torch"] == torch.__version__
    assert record.header["machine"]["cores"] >= 1
    differentiated, updated = list(record.of(Differentiated)), list(record.of(Updated))
    assert [event.step for event in differentiated] == [event.step for event in updated] == [1, 2, 3]
    assert {event.source for event in updated} == {"digital"}
    for made, used in zip(differentiated, updated, strict=True):
        assert made.began < made.ended <= used.began < used.ended


def test_the_record_of_a_free_running_device_becomes_a_timeline(stripes: Task, free: Daemon, tmp_path: Path) -> None:
    settings = Settings(lr=0.5, batch_size=20, steps=12, analog_time=2.0, freshness=1)
    with connect(free.address) as spu:
        result = run_in(tmp_path, stripes, settings, spu, label="TNGD", console=quiet(), options={})
    record = load(tmp_path)
    timeline = lay_out(record)
    assert timeline.unit == "s"
    assert timeline.notes == ()
    assert [bar.number for bar in timeline.of("differentiation")] == [bar.number for bar in timeline.of("update")]
    held = [arrow for arrow in timeline.arrows if arrow.kind == "take effect"]
    assert len(held) == len(timeline.of("program")) >= 11  # the last one may not have taken effect
    assert {arrow.source.number for arrow in timeline.arrows if arrow.kind == "submit"} >= set(range(1, 12))
    ends = {arrow.target.number: arrow for arrow in timeline.arrows if arrow.kind == "reading"}
    assert sorted(ends) == list(range(1, 13))
    # Staleness as the optimizer reported it is that of the picture, but where this process was kept waiting in between.
    drawn = [1000.0 * (ends[step.step].ended - ends[step.step].began) for step in result.steps]
    assert median(abs(step.staleness - one) for step, one in zip(result.steps, drawn, strict=True)) < 5.0
    assert result.steps[-1].counts["updates"] == 12
    turns = measure_turns(timeline, Window(0.0, timeline.ended))
    assert turns is not None
    recorded = DelayMeter()
    for event in record.events:
        recorded(event)
    assert recorded.delays[: len(result.delays)] == result.delays
    assert len(recorded.delays) <= len(result.delays) + 1  # the last program may have taken effect after the last step
    assert turns.delay == median(recorded.delays) > 0.0  # though the setting is 0: a free clock does not wait
    assert "t_d ≥ 0 τ" in settings.describe()


def test_a_report_is_written_when_the_device_is_gone_by_then(
    stripes: Task, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    one = daemon("--rate", "1000")
    settings = Settings(batch_size=20, steps=2, analog_time=1.0)
    with connect(one.address) as spu:
        result = run(stripes, settings, spu, label="TNGD", console=quiet())
        one.close()
        write_report(tmp_path, result, stripes, spu, label="TNGD")
    assert json.loads((tmp_path / "run.json").read_text())["device"]["rate_tau_per_s"] == 1000.0


def test_the_progress_line_shows_staleness_and_what_is_out_of_the_ordinary() -> None:
    counts = {"updates": 9, "uploads": 9, "dropped": 3, "reconnected": 1, "digital": 0}
    line = Line(rate=1000.0)
    assert "dropped" not in line.add(StepMetrics(1, 1, 2.0, 0.1, 0.1, 0.1, counts={"dropped": 0}))
    said = line.add(StepMetrics(2, 1, 2.0, 0.1, 0.2, 0.1, uploaded=10**6, staleness=12.5, counts=counts))
    assert (
        said
        == "loss 2.000, accuracy 10.0%, staleness 12.5 τ (12.5 ms), uploaded 1.0 MB, 3 uploads dropped, 1 reconnected"
    )
    assert "ms" not in Line(rate=0.0).add(StepMetrics(1, 1, 2.0, 0.1, 0.2, 0.1, staleness=12.5))


def test_the_same_seed_gives_the_same_run(stripes: Task) -> None:
    def losses(seed: int) -> list[float]:
        events = Training(stripes, Settings(optimizer="adam", batch_size=20, steps=5, seed=seed)).events()
        return [event.loss for event in events if isinstance(event, StepMetrics)]

    assert losses(1) == losses(1) != losses(2)


def test_the_settings_precision_halves_what_travels_of_the_curvature(stripes: Task) -> None:
    with connect("inproc:", clock="stepped") as spu:
        uploads = []
        for precision in ("float32", "bfloat16"):
            settings = Settings(steps=2, batch_size=20, analog_time=5.0, precision=precision)
            uploads.append(run(stripes, settings, spu, label=precision, console=quiet()).bytes_per_upload)
    full, narrow = uploads
    parameters = sum(p.numel() for p in stripes.build(0).parameters())
    assert 2 * (narrow - 4 * parameters) == full - 4 * parameters


def test_evaluations_come_when_asked_for_and_at_the_end(stripes: Task) -> None:
    settings = Settings(optimizer="adam", batch_size=20, steps=7)
    events = Training(stripes, settings).events(evaluate_every=3, splits=("validation", "test"))
    evaluated = [(event.step, event.split) for event in events if isinstance(event, Evaluation)]
    assert evaluated == [(step, split) for step in (3, 6, 7) for split in ("validation", "test")]


def test_divergence_stops_the_run_with_advice(stripes: Task) -> None:
    with pytest.raises(Diverged, match=r"step \d+: the loss is not finite.* lower lr"):
        list(Training(stripes, Settings(optimizer="sgd", lr=1e30, batch_size=20, epochs=5)).events())


def test_tngd_without_a_device_is_refused(stripes: Task) -> None:
    with pytest.raises(ValueError, match="needs a session"):
        Training(stripes, Settings(steps=1))


def test_what_a_setting_says_the_optimizer_does(stripes: Task) -> None:
    settings = Settings(optimizer="ngd-cg", lr=50.0, trust_region=0.01, curvature_every=2, batch_size=20, steps=4)
    steps = [event for event in Training(stripes, settings).events() if isinstance(event, StepMetrics)]
    assert steps[-1].counts["trust region"] == 4
    assert settings.describe() == "η = 50, λ = 0.01, k = 2, δ = 0.01"


def test_settings_have_the_papers_defaults_and_refuse_nonsense() -> None:
    assert (Settings().lr, Settings().damping, Settings().analog_time, Settings().delay) == (0.01, 0.01, 50.0, 0.0)
    for optimizer, rate in LEARNING_RATES.items():
        assert Settings(optimizer=optimizer).lr == rate
    assert Settings(on_loss="wait", timeout=3).hyperparameters()["timeout"] == 3.0
    assert "timeout" not in Settings(optimizer="ngd").hyperparameters()
    for wrong in (
        {"lr": -1},
        {"batch_size": 0},
        {"optimizer": "adam", "momentum": 0.9},
        {"speed": 1},
        {"optimizer": "adam", "trust_region": 1},
    ):
        with pytest.raises(ValidationError):
            Settings.model_validate(wrong)


def test_the_moving_average_is_the_mean_of_the_last_points() -> None:
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert moving_average(values, 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert moving_average(values, 200).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_table_sets_the_upload_against_the_explicit_jacobian() -> None:
    steps = [
        StepMetrics(n, 1, 0.5, 0.9, float(n), 0.05, uploaded=1_000_000, device_time=1.0, staleness=2.0) for n in (1, 2)
    ]
    one = Run(Settings(), 100_000, 10, steps, [Evaluation(2, "test", 0.25, 0.925)])
    stream = StringIO()
    Console(file=stream, width=120).print(run_table("TNGD", one, "Stripes"))
    for text in ("0.2500", "92.50%", "50.0 ms", "1.0 MB", "256.0 ×", "256.0 MB"):
        assert text in stream.getvalue()
    assert "timing model" not in stream.getvalue()


def test_modelled_time_and_energy_of_the_device_are_shown_next_to_the_wall_time(stripes: Task) -> None:
    settings = Settings(batch_size=20, steps=4)
    with connect("inproc:", clock="stepped") as spu:
        one = run(stripes, settings, spu, label="TNGD", console=Console(file=StringIO()))
    program = sum(one.report[f"{part}_seconds"] for part in ("upload", "conversion", "reading"))
    assert one.report["uploads"] == one.report["readings"] == 4
    assert one.modelled_seconds == pytest.approx(4 * 50e-6 + program)
    results = summary(one)["results"]
    assert results["modelled_device_seconds"] == one.modelled_seconds < results["seconds"]
    assert results["modelled_device_joules"] == one.report["joules"] > 0.0
    stream = StringIO()
    Console(file=stream, width=120).print(run_table("TNGD", one, "Stripes"))
    assert f"timing model, TNGD: {1e3 * one.modelled_seconds / 4:.3g} ms and" in stream.getvalue()


def test_a_report_is_of_the_run_alone(stripes: Task) -> None:
    with connect("inproc:", clock="stepped") as spu:
        reports = [
            run(stripes, Settings(batch_size=20, steps=2), spu, label="TNGD", console=quiet()).report for _ in range(2)
        ]
    assert reports[0]["uploads"] == reports[1]["uploads"] == 2


@pytest.mark.parametrize("restarted", [0, 1], ids=["first", "second"])
def test_without_the_counts_of_a_device_that_was_restarted_there_is_no_report(
    stripes: Task, daemon: Callable[..., Daemon], restarted: int, tmp_path: Path
) -> None:
    daemons = [daemon("--rate", "100000") for _ in range(2)]
    settings = Settings(batch_size=20, steps=6, analog_time=1.0, on_loss="wait")

    def trained(name: str, stopped: Callable[[], bool] = lambda: False) -> Run:
        how: dict[str, Any] = {"label": "TNGD", "console": quiet(), "options": {}, "stopped": stopped}
        return run_in(tmp_path / name, stripes, settings, spu, **how)

    steps = itertools.count(1)

    def restart() -> bool:
        if next(steps) == 3:
            driver = daemons[restarted].driver_process()
            driver.kill()
            driver.wait()
        return False

    with connect([one.address for one in daemons], embedding="block") as spu:
        assert trained("a").report["uploads"] == 12
        again = trained("b", restart)
    assert len(again.steps) == 6
    assert again.report == {}


def test_a_daemon_of_ones_own_ends_with_the_block_also_on_failure() -> None:
    def interrupted() -> None:
        with local_daemon(clock="stepped") as address:
            addresses.append(address)
            with connect(address) as spu:
                assert spu.info.time == 0.0
            raise KeyboardInterrupt

    addresses: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(DeviceUnavailable):
        connect(addresses[0], timeout=5.0)


def test_a_daemon_that_does_not_start_says_why() -> None:
    with pytest.raises(DaemonFailed, match=r"(?s)ended with exit code \d.*tau"), local_daemon(options=["--tau", "-1"]):
        pytest.fail("it started")
