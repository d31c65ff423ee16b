"""Commands as programs: in terminals of several kinds, in logs, ended by signals, and fast where they refuse."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console

from spu_lab.training.follow import follow, progress
from spu_lab.training.loop import Evaluation, Run, StepMetrics
from spu_lab.training.settings import Settings
from spu_link.terminal_text import plain
from tests.system.raw import eventually

PROGRAM = [sys.executable, str(Path(__file__).with_name("program.py"))]
SMALL = ["--train-size", "100", "--test-size", "20", "--batch-size", "4"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "TERM")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | more


def in_terminal(columns: int, *arguments: str, **variables: str) -> str:
    """Run the program in a terminal of so many columns; what it wrote, line by line."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdin=its, stdout=its, stderr=its, env=environment(**{"TERM": "xterm", **variables})
    ) as process:
        os.close(its)
        written = b""
        while True:
            try:
                written += os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                break
        os.close(ours)
    assert process.returncode == 0, written
    return without_escapes(written.decode("ascii" if variables else "utf-8"))


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_of_60_columns_shows_bar_count_and_time_left_and_the_whole_table(tmp_path: Path) -> None:
    options = ["--optimizer", "adam", "--steps", "20", *SMALL, "--out", str(tmp_path)]
    text = in_terminal(60, "train", "mnist", *options)
    lines = re.split(r"[\r\n]+", text)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 60
    assert any(re.search(r"adam ━+[╸╺]?━* +\d+/20 \d+:\d\d loss \d\.\d+", line) for line in lines)
    for figure in ("training loss", "test accuracy", "time a step"):
        assert any(re.search(rf"{figure} .*\d", line) for line in lines)
    assert "…" not in "".join(lines[-20:])


def test_an_ascii_terminal_gets_ascii(tmp_path: Path) -> None:
    options = ["--optimizer", "ngd-woodbury", "--steps", "8", *SMALL, "--out", str(tmp_path)]
    text = in_terminal(80, "train", "mnist", *options, PYTHONIOENCODING="ascii")
    assert re.search(r"ngd-woodbury -+ +\d/8 [-\d]+:[-\d]\d loss", text)
    assert "test accuracy" in text
    text = in_terminal(80, "train", "--help", LC_ALL="C", TERM="dumb")
    assert "in tau" in text
    assert "lambda" in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_line_has_room_for_all_of_it_from_60_columns_on(
    width: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = TextIOWrapper(BytesIO(), encoding=encoding, errors="replace")
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    with progress(console) as bar:
        label = "12/60: analog, 8 bits, seed 0"
        bar.add_task(label, total=10_000, completed=3_333, status="loss 2.301, accuracy 10.0%, staleness 12.5 τ")
    stream.flush()
    stream.seek(0)
    line = next(line for line in without_escapes(stream.read()).splitlines() if "12/60" in line)
    assert re.search(r"12/60: analog\S*.* [━╸╺-]+ +3333/10000 --:-- loss", line), line
    assert len(line.rstrip()) <= width


def events(count: int) -> list[StepMetrics | Evaluation]:
    steps = [StepMetrics(n, 1, 2.0, 0.1, float(n), 0.1) for n in range(1, count + 1)]
    return [*steps, Evaluation(count, "test", 1.0, 0.5)]


@pytest.mark.parametrize("terminal", [False, True], ids=["a file", "a dumb terminal"])
def test_a_log_gets_plain_lines_and_few(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream, now = StringIO(), iter(range(10_000))
    monkeypatch.setattr("spu_lab.training.follow.time.monotonic", lambda: float(next(now)))
    console = Console(file=stream, force_terminal=terminal, width=80)
    follow(events(200), Run(Settings(), 10, 3), label="adam", total=200, console=console)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "adam: 20 of 200 iterations, loss 2.000, accuracy 10.0%"
    assert len(lines) == 11
    assert lines[-1].startswith("adam: after 200 iterations test loss")
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("time t in τ.    |", "time t in tau.  |"),
        ("κ₀ (F + λI)⁻¹", "kappa0 (F + lambdaI)^-1"),
        ("1.5 ×\n–", "1.5 x\n-"),
        ("é ✓", r"\xe9 ?"),
    ],
)
def test_words_replace_characters_and_columns_stay_where_they_are(text: str, shown: str) -> None:
    assert plain(text, "ascii") == shown
    assert plain(text, "utf-8") == text


NAMES = """
import sys
from typer.testing import CliRunner
from spu_lab import cli
for line in sys.stdin:
    result = CliRunner().invoke(cli.app, line.split())
    print(result.exit_code, "torch" in sys.modules, result.output.replace(chr(10), " "))
"""


def test_a_wrong_name_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").touch()
    (tmp_path / "other").mkdir()
    wrong = {
        "train no-such-task": "no-such-task",
        "train mnist --optimizer no-such-one": "no-such-one",
        "reproduce no-such-experiment": "'no-such-experiment' is none of analog-time, circuit, complexity",
        "bench no-such-benchmark": "'no-such-benchmark' is none of capture",
        f"timeline {tmp_path}/no-such-folder": "no-such-folder",
        f"timeline {tmp_path}/other": "events.jsonl does not exist",
        f"replay {tmp_path}/no-such-folder": "no-such-folder",
        f"replay {tmp_path}/other": "has no log.json",
        f"performance {tmp_path}/no-such-folder": "no-such-folder",
        f"train mnist --out {tmp_path}": "results that are of no run (steps.csv)",
        f"train mnist --resume --out {tmp_path}/other": "no run can go on from it",
        "no-such-command": "no-such-command",
    }
    done = subprocess.run(
        [sys.executable, "-c", NAMES],
        input="\n".join(wrong),
        text=True,
        capture_output=True,
        env=environment(COLUMNS="250"),
        timeout=60,
    )
    for line, (command, said) in zip(done.stdout.splitlines(), wrong.items(), strict=True):
        code, imported, output = line.split(" ", 2)
        assert int(code) in (1, 2), line
        assert imported == "False", command
        assert said in output, line


def started(out: Path, *options: str) -> subprocess.Popen[str]:
    return program("train", "mnist", *SMALL, "--out", str(out), *options)


def program(*arguments: str) -> subprocess.Popen[str]:
    command = [*PROGRAM, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "steps.csv").read_text().splitlines()))


def interrupted(process: subprocess.Popen[str], when: Callable[[], bool], number: signal.Signals) -> str:
    """Send a signal as soon as something is so; what the process wrote to standard error."""
    with process:
        eventually(lambda: process.poll() is not None or when(), "it is so, or the process has ended")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    return errors


def test_an_interrupted_run_is_consistent_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "a run"
    options = ["--optimizer", "ngd-woodbury", "--steps", "400", "--curvature", "mc"]
    process = started(out, *options)
    there = out / "steps.csv"
    errors = interrupted(process, lambda: there.exists() and there.read_text().count("\n") > 3, signal.SIGINT)
    assert process.returncode == 130
    done = len(rows(out))
    assert 3 <= done < 400
    assert errors.startswith(
        f"interrupted: by Ctrl-C; after step {done} of 400; {out} holds what there is of the run: "
    )
    named = re.search(r"of the run: (.*); go on with `tngd (train mnist --resume --out .*)`", errors)
    assert named is not None
    assert sorted(named[1].split(", ")) == sorted(path.name for path in out.iterdir())
    content = json.loads((out / "run.json").read_text())
    assert content["status"] == "interrupted"
    assert content["runs"]["ngd-woodbury"]["results"]["iterations"] == done
    with started(out, "--resume", "--lr", "0.5") as refused:
        _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 1
    assert "--lr is 0.5; the run to go on with was started with None, leave it out" in errors
    process = program(*shlex.split(named[2]))
    errors = interrupted(process, lambda: len(rows(out)) > done, signal.SIGTERM)
    assert process.returncode == 143
    assert [int(row["step"]) for row in rows(out)] == list(range(1, len(rows(out)) + 1))
    assert len(rows(out)) > done
    assert "by SIGTERM" in errors


def test_before_the_first_step_nothing_is_said_to_be_there(tmp_path: Path) -> None:
    process = started(tmp_path / "run")
    errors = interrupted(process, (tmp_path / "run").exists, signal.SIGINT)
    assert process.returncode == 130
    assert errors == "interrupted: by Ctrl-C\n"
    assert list((tmp_path / "run").iterdir()) == []
