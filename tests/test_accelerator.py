"""Models and the emulator on an accelerator: a simulated one, so that it is shown on every machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_on_an_accelerator_everything_stays_there_up_to_one_asynchronous_copy() -> None:
    """In a separate process: what makes the simulated accelerator known to torch cannot be taken back."""
    cases = Path(__file__).parent / "accelerator" / "on_accelerator.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=450.0)
    assert done.returncode == 0, done.stdout + done.stderr
