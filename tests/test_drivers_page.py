"""The drivers' page: its commands run as they stand there, and its tables are the code's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from spu_server.board.document import register_table
from spu_server.lifecycle import lifecycle_table
from spu_server.testing.document import check_table

PAGE = Path(__file__).parent.parent / "docs" / "drivers.md"
ROOT = PAGE.parent.parent
FILE = re.compile(r"[Ff]ile `([\w.]+)`.*?^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(800)  # a quarter of a minute where nothing else runs, five of them on a busy single processor
def test_from_nothing_to_a_passing_driver_with_every_command_run(tmp_path):
    text = PAGE.read_text()
    project, installed = tmp_path / "project", tmp_path / "installed"
    project.mkdir()
    files = FILE.findall(text)
    assert [name for name, _ in files] == ["pyproject.toml", "little_spu.py"]
    for name, content in files:
        (project / name).write_text(content)
    blocks = COMMANDS.findall(text)
    assert len(blocks) == 3
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT), str(ROOT / "protos")]),
        # What the reader's own environment has installed already, this one has next to the folder.
        "PIP_TARGET": str(installed),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_QUIET": "1",
        "COLUMNS": "200",
    }
    output = ""
    for block in blocks:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            # Until the block has ended; what it left in the background goes on writing to its own pipes.
            code = process.wait(timeout=250)
        finally:
            with suppress(ProcessLookupError):  # nothing was left
                os.killpg(process.pid, signal.SIGKILL)
            output += process.communicate()[0]
        assert code == 0, output
    assert "little: no rules broken" in output
    assert "board: no rules broken" in output
    assert "passed" in output
    assert "failed" not in output


def test_its_tables_are_the_codes():
    text = PAGE.read_text()
    for table in (lifecycle_table(), register_table(), check_table()):
        assert table in text
