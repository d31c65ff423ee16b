"""Messages of commands that cannot do what was asked: one message in their own words, and no traceback."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from host_client import CurvatureFallback, connect
from spu_lab import catalogue
from spu_lab.commands.messages import as_typed, one_clear_message
from spu_lab.tasks.task import Examples, Task
from spu_lab.training.runner import run_in
from spu_lab.training.settings import Settings
from spu_link.errors import DeviceUnavailable
from tests.command_line import tngd, words

SMALL = ["--train-size", "40", "--test-size", "20", "--batch-size", "8"]


@pytest.mark.usefixtures("noise_digits")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "ngd-woodbury", "--damping", "0"], "--damping is 0; a digital solve needs more than 0"),
        (["--on-loss", "digital", "--damping", "0"], "--damping is 0; a digital solve needs more than 0"),
        (["--optimizer", "adam", "--trust-region", "1"], "--trust-region is 1.0; adam has none"),
        (["--optimizer", "adam", "--momentum", "0.9"], "--momentum is 0.9; adam has its own, leave it at 0"),
        (["--trust-region", "0"], "--trust-region is 0; it must be more than 0"),
        (["--lr", "nan"], "--lr is nan; it must be finite"),
        (["--noise", "inf"], "--noise is inf; it must be finite"),
        (["--analog-time", "1e300"], "--analog-time is 1e+300; it must be at most 1e+12"),
        (["--timeout", "1e300"], "--timeout is 1e+300; it must be at most 1e+06"),
        (["--seed", str(2**70)], "--seed is 1.18059e+21; it must be less than 9.22337e+18"),
        (["--steps", str(2**70)], "--steps is 1.18059e+21; it must be at most 1e+09"),
    ],
)
def test_a_setting_out_of_range_is_named_as_it_is_typed(options: list[str], message: str, tmp_path: Path) -> None:
    result = tngd("train", "mnist", "--train-size", "40", "--test-size", "20", *options, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert words(result.stderr).startswith(f"error: {message}"), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("noise_digits")
@pytest.mark.parametrize("optimizer", ["tngd", "adam"])
def test_divergence_names_step_and_tensor_and_what_to_lower(optimizer: str, tmp_path: Path) -> None:
    options = ["--optimizer", optimizer, "--lr", "1e15", "--steps", "30", *SMALL, "--out", str(tmp_path)]
    result = tngd("train", "mnist", *options)
    assert result.exit_code == 1
    assert "Diverged: step " in result.stderr
    for said in (" is not finite", "lower --lr", "raise --damping", "--trust-region"):
        assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["status"] == "failed"
    assert content["reason"].startswith("step ")


def test_what_is_no_fault_of_the_person_leaves_its_traceback_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("linalg.cholesky: of a library")

    monkeypatch.setattr(catalogue, "find", broken)
    result = tngd("bench", "step")
    assert result.exit_code == 1
    assert result.stderr.startswith("unexpected error: RuntimeError; this is a fault of tngd.")
    assert "cholesky" not in result.output
    log = Path(result.stderr.split()[-1])
    assert "linalg.cholesky: of a library" in log.read_text()
    log.unlink()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in (["train", "mnist"], ["demo"], ["reproduce", "noise"]):
        result = tngd(*command, "--out", str(tmp_path / "file" / "below"))
        assert result.exit_code == 1
        assert words(result.stderr) == f"error: {tmp_path}/file/below: Not a directory "


@pytest.mark.filterwarnings("default")
def test_a_warning_is_shown_once_and_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    with one_clear_message({"trust_region": "--trust-region"}):
        for text in ("'a' is slow; set trust_region", "'a' is slow; set trust_region", "'b' is slow; freeze it"):
            warnings.warn(CurvatureFallback(text), stacklevel=1)
    shown = capsys.readouterr().err
    assert shown == "note: 'a' is slow; set --trust-region\nnote: 'b' is slow; freeze it\n"


def test_options_are_named_as_they_are_typed() -> None:
    options = {"trust_region": "--trust-region", "lr": "--lr", "curvature": "--curvature", "damping": "--damping"}
    for text, typed in {
        "Invalid damping: 0.0; it must be more": "--damping is 0.0; it must be more",
        'a curvature="mc" would fit': "a --curvature mc would fit",
        "the curvature is large; lower lr or raise damping": "the curvature is large; lower --lr or raise --damping",
        "bound the steps with trust_region": "bound the steps with --trust-region",
        "already --trust-region and --lr": "already --trust-region and --lr",
    }.items():
        assert as_typed(text, options) == typed


def test_no_word_of_grpc_is_in_an_error_of_the_connection(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        connect(f"unix:{tmp_path}/nobody.sock")
    address = f"unix:{tmp_path}/nobody.sock"
    assert str(caught.value) == (
        f"GetInfo: no SPU daemon answers at {address} (No such file or directory); is `spu-server serve --listen "
        f"{address}` running?"
    )


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small run: ``run`` with its record, ``log`` with the device's log."""
    folder = tmp_path_factory.mktemp("left")
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    examples = Examples(inputs, inputs.argmax(1))
    task = Task(
        "t", 3, lambda: nn.Linear(3, 3), nn.CrossEntropyLoss(), lambda x: x, examples, examples, examples
    )  # fmt: skip
    settings = Settings(batch_size=10, steps=4, analog_time=5.0)
    with connect("inproc:", clock="stepped", record=str(folder / "log")) as spu:
        quiet = Console(file=StringIO())
        run_in(folder / "run", task, settings, spu, label="run", console=quiet, options={})
    return folder


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for before, after in pairs:
        text = text.replace(before, after)
    return text


DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "not JSON": lambda text: "{" * 5 + text,
    "another thing": lambda text: "[1, 2]\n" + text,
    "a number as text": lambda text: text.replace('"began": ', '"began": "soon", "x": ').replace(
        '"time":', '"time":"x'
    ),
    "a number that is none": lambda text: text.replace('"ended": ', '"ended": null, "x": ').replace(
        '"time":', '"time":{'
    ),
    "a list as a name": lambda text: text.replace('"event": ', '"event": [], "x": ').replace(
        '"call":', '"call":[],"x":'
    ),
    "nothing of the beginning": lambda text: text.partition("\n")[2],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_or_log_is_one_message(left: Path, damage: str, tmp_path: Path) -> None:
    shutil.copytree(left, tmp_path / "left")
    for command, name in (("timeline", "run"), ("replay", "log")):
        folder = tmp_path / "left" / name
        (file,) = folder.rglob("events.jsonl")
        file.write_text(DAMAGE[damage](file.read_text()))
        result = tngd(command, str(folder))
        if (damage, command) == ("empty", "replay"):  # a log of a device that was never called
            assert result.exit_code == 0
            continue
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith(("UnreadableRecord: ", "LogUnusable: ")), result.stderr
        assert str(folder) in result.stderr


def test_what_is_no_result_of_a_benchmark_is_one_message(tmp_path: Path) -> None:
    machine = {"processor": "P", "cores": 2, "torch_threads": 2, "system": "S"}
    whole = {"name": "x", "ratios": {}, "results": {}, "command": "c", "commit": None, "date": "D", "versions": {}}
    for content, field in (
        ("[1]", "content"),
        ("{", "JSON"),
        (json.dumps({**whole, "machine": {**machine, "cores": "two"}}), "machine.cores"),
        (json.dumps({**whole, "machine": machine, "ratios": {"a": "fast"}}), "ratios.a"),
        (json.dumps({**whole, "machine": machine, "versions": 3}), "versions"),
    ):
        (tmp_path / "x.json").write_text(content)
        result = tngd("performance", str(tmp_path), "--out", str(tmp_path / "page.md"))
        assert result.exit_code == 1
        assert result.stderr.startswith(f"NoResults: {tmp_path}/x.json is not ")
        assert field in result.stderr
