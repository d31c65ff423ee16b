import csv
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from host_client import blocking
from spu_lab import catalogue
from spu_lab.commands.messages import next_step
from spu_link.errors import DeviceBusy, DeviceFault
from tests.command_line import tngd, words
from tests.daemon import Daemon


def test_help_names_every_option_with_unit_and_default() -> None:
    text = words(tngd("train", "--help").output)
    for said in ("in τ", "κ₀", "50.0", "0.01", "unix:PATH", "inproc:", "Images in a batch", "10000", "Examples"):
        assert said in text
    for command in ("demo", "reproduce", "bench"):
        assert "default" in tngd(command, "--help").output


@pytest.mark.usefixtures("noise_digits")
def test_train_mnist_through_a_daemon_ends_with_its_table(free: Daemon, tmp_path: Path) -> None:
    sizes = ["--train-size", "200", "--test-size", "100", "--batch-size", "16", "--steps", "3"]
    result = tngd("train", "mnist", "--spu", free.address, *sizes, "--analog-time", "5", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "Jacobian" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"steps.csv", "run.json", "run.png", "events.jsonl"}
    rows = list(csv.DictReader((tmp_path / "steps.csv").read_text().splitlines()))
    assert len(rows) == 3
    assert int(rows[0]["uploaded_bytes"]) < 16 * 10 * 105_866 * 4 / 30


@pytest.mark.usefixtures("noise_digits")
def test_train_mnist_through_devices_smaller_than_the_network(tmp_path: Path) -> None:
    sizes = ["--train-size", "60", "--test-size", "20", "--batch-size", "4", "--steps", "2", "--out", str(tmp_path)]
    result = tngd("train", "mnist", "--spu", "inproc:", "--spu", "inproc:", "--embedding", "block", *sizes)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run.json").read_text())["device"]["embedding"] == "block"
    result = tngd(
        "train", "mnist", "--spu", "inproc:", "--spu", "inproc:", "--embedding", "sample", *sizes, "--overwrite"
    )
    assert result.exit_code == 1
    assert "embedding 'sample' is a single program, on a single device" in words(result.stderr)


@pytest.mark.usefixtures("noise_digits")
def test_a_device_that_is_too_small_is_one_message_that_says_what_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "connect", partial(blocking.connect, cells=8))
    sizes = ["--train-size", "20", "--test-size", "20", "--batch-size", "4", "--steps", "1"]
    for number, (embedding, reason) in enumerate(
        {
            "direct": "8 cells for 105,866 parameters.* --embedding sample.* --curvature mc with samples=2 or fewer",
            "sample": "8 cells for 36 rows of the factor.* --curvature mc with samples=2 or fewer",
            "block": "8 cells for 100,416 parameters of the largest block.* --embedding sample",
            "kronecker": "needs 1,569 cells .* the device has 8; .* another --embedding",
        }.items()
    ):
        result = tngd("train", "mnist", "--embedding", embedding, *sizes, "--out", str(tmp_path / str(number)))
        assert result.exit_code == 1
        assert re.search(reason, words(result.stderr)), result.stderr
        assert "Traceback" not in result.output


def test_a_dead_address_is_one_message_with_the_next_step(tmp_path: Path) -> None:
    result = tngd("train", "mnist", "--spu", f"unix:{tmp_path}/nobody.sock", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "DeviceUnavailable" in result.stderr
    assert "spu-server serve --listen" in words(result.stderr)
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("noise_digits")
def test_methods_that_cannot_do_it_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--train-size", "20", "--test-size", "20", "--steps", "1", "--overwrite", "--out", str(tmp_path)]
    result = tngd("train", "mnist", "--optimizer", "ngd", *options)
    assert result.exit_code == 1
    assert "105866 parameters in full takes 83.5 GiB" in words(result.stderr)
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    result = tngd("train", "mnist", "--optimizer", "kfac", *options)
    assert result.exit_code == 1
    assert "pip install 'tngd-spu[kfac]'" in words(result.stderr)


def test_errors_of_the_device_come_with_a_next_step() -> None:
    assert "free in 7 s" in next_step(DeviceBusy("busy", retry_after=7.0))
    assert "log" in next_step(DeviceFault("broken"))


def test_experiments_and_benchmarks_are_found_by_name() -> None:
    assert "mnist: " in tngd("reproduce", "list").output
    assert "step" in tngd("bench", "list").output.split()
    for command in ("reproduce", "bench"):
        result = tngd(command, "no-such-thing")
        assert result.exit_code == 1
        assert "'no-such-thing' is none of" in words(result.stderr)


def test_a_benchmark_writes_its_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        @staticmethod
        def run() -> dict[str, object]:
            return {"ratios": {"fast": 2.5}, "median_s": 0.1}

    monkeypatch.setattr(catalogue, "find", lambda package, name: Fake)
    result = tngd("bench", "fake", "--json", str(tmp_path / "b.json"))
    assert result.exit_code == 0, result.output
    assert "2.5" in result.output
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["name"] == "fake"
    assert content["ratios"] == {"fast": 2.5}
    assert content["results"] == {"median_s": 0.1}
    assert "torch" in content["versions"]


@pytest.mark.parametrize("address", ["foo", "unix:", "http://localhost:50051", "localhost:99999", ":50051", "::1:80"])
def test_what_is_no_address_is_refused_before_anyone_is_asked(address: str, tmp_path: Path) -> None:
    result = tngd("train", "mnist", "--spu", address, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert f"address is {address!r}; expected unix:PATH, HOST:PORT or inproc:" in words(result.stderr)


@pytest.mark.parametrize("given", ["soon", "", "-1", "1.5"])
def test_a_freshness_that_means_nothing_is_reported_in_the_words_of_the_option(given: str) -> None:
    result = tngd("train", "mnist", "--freshness", given)
    assert result.exit_code == 2
    assert f"{given!r} is neither program, newest nor a number of programs" in words(result.stderr)


def test_settings_are_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from spu_lab.cli import app; app()"
    options = ["train", "mnist", "--damping", "inf", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: --damping is inf; it must be finite\n")
