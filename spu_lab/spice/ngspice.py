"""Run ngspice on a netlist, and read what it has computed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

from spu_lab.catalogue import SoftwareMissing
from spu_lab.spice.netlist import TAU, Network, Transient, netlist

SHOWN = 8
"""Lines of ngspice's output that an error shows."""


class SimulationFailed(Exception):
    """Ngspice did not simulate a circuit to its end; the message holds the end of what it printed."""

    remedy: ClassVar[str] = (
        "read what ngspice printed: a time step that is too small points to an unstable circuit, such as one with "
        "slow amplifiers; a circuit that takes too long needs fewer copies or longer steps"
    )


Numbers: TypeAlias = Annotated[
    NDArray[np.float64], PlainValidator(np.asarray), PlainSerializer(lambda numbers: numbers.tolist())
]
"""An array that pydantic writes as nested lists."""


@dataclass(frozen=True)
class Trajectory:
    """States of a network at the times at which ngspice computed them.

    Attributes:
        times: in τ, shape (points,).
        states: V, shape (points, copies, N).
    """

    times: Numbers
    states: Numbers

    def nearest(self, times: NDArray[np.float64]) -> Trajectory:
        """Return the points that are next to these times."""
        after = np.searchsorted(self.times, times).clip(1, len(self.times) - 1)
        nearer = times - self.times[after - 1] < self.times[after] - times
        chosen = np.where(nearer, after - 1, after)
        return Trajectory(self.times[chosen], self.states[chosen])


def ngspice() -> str:
    """Return the path of the program.

    Raises:
        SoftwareMissing: when there is none.
    """
    path = shutil.which("ngspice")
    if path is None:
        raise SoftwareMissing(
            "there is no program named ngspice on the path; install it: `apt-get install ngspice` (Debian, Ubuntu), "
            "`dnf install ngspice` (Fedora), `brew install ngspice` (macOS) or `conda install -c conda-forge ngspice`"
        )
    return path


def version() -> str:
    """Return the version of the program, such as ``"39"``.

    Raises:
        SoftwareMissing: when there is none.
    """
    printed = subprocess.run([ngspice(), "--version"], capture_output=True, text=True, timeout=60.0, check=False).stdout
    found = re.search(r"ngspice-(\S+)", printed)
    return found[1] if found else "unknown"


def simulate(network: Network, transient: Transient, *, deadline: float = 60.0) -> Trajectory:
    """Simulate a network.

    Args:
        network: what is simulated.
        transient: for how long, in which steps, how many copies.
        deadline: for ngspice, in seconds.

    Raises:
        SoftwareMissing: when it is not installed.
        SimulationFailed: when it ends before the time is over, or does not end within the deadline.
    """
    table = run(netlist(network, transient), deadline=deadline)
    times = table[:, 0] / TAU
    if len(times) == 0 or times[-1] < (1.0 - 1e-6) * transient.duration:
        reached = times[-1] if len(times) else 0.0
        raise SimulationFailed(f"ngspice stopped at {reached:.6g} τ of {transient.duration:g} τ")
    return Trajectory(times, table[:, 1:].reshape(len(times), transient.copies, network.cells))


def run(text: str, *, deadline: float) -> NDArray[np.float64]:
    """Simulate a netlist in batch mode; return the table of its first plot, a column for each saved variable.

    Raises:
        SoftwareMissing: when it is not installed.
        SimulationFailed: when it reports an error, leaves no table, or does not end within the deadline.
    """
    with tempfile.TemporaryDirectory(prefix="tngd-ngspice-") as folder:
        circuit, table = Path(folder, "circuit.cir"), Path(folder, "circuit.raw")
        circuit.write_text(text, encoding="ascii")
        # -n: without the user's .spiceinit, which may change tolerances and the form of the table
        command = [ngspice(), "-n", "-b", "-r", str(table), str(circuit)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=folder,
                timeout=deadline,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SimulationFailed(f"ngspice did not end within {deadline:g} s") from error
        if done.returncode or not table.exists():
            raise SimulationFailed(f"ngspice ended with exit code {done.returncode}:\n{_essence(done.stdout)}")
        return read_table(table.read_bytes())


def read_table(data: bytes) -> NDArray[np.float64]:
    """Return the real table in a binary raw file of ngspice, shape (points, variables).

    Raises:
        SimulationFailed: when it is not one.
    """
    head, mark, values = data.partition(b"Binary:\n")
    columns = re.search(rb"^No\. Variables:\s*(\d+)", head, re.MULTILINE)
    points = re.search(rb"^No\. Points:\s*(\d+)", head, re.MULTILINE)
    if not mark or columns is None or points is None or b"real" not in head:
        raise SimulationFailed("ngspice left a file that is not a binary table of real numbers")
    shape = int(points[1]), int(columns[1])
    if len(values) < 8 * shape[0] * shape[1]:
        raise SimulationFailed(f"ngspice left {len(values)} bytes of a table of {shape[0]} × {shape[1]} numbers")
    return np.frombuffer(values, dtype="<f8", count=shape[0] * shape[1]).reshape(shape)


def _essence(printed: str) -> str:
    """Return the lines that name an error, or the last ones where none does."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    named = [
        line for line in lines if re.search(r"error|undefined|can't|too small|singular|unknown", line, re.IGNORECASE)
    ]
    return "\n".join((named or lines)[-SHOWN:]) or "it has printed nothing"
