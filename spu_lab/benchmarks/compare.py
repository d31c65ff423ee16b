"""Compare the time of capture with that in another checkout of this repository, in alternating rounds.

    python -m spu_lab.benchmarks.compare ../other-checkout
    python -m spu_lab.benchmarks.compare ../other-checkout --networks reference lora --rounds 10

Each checkout runs in a separate process and takes its turn in each round; the ratio is the median of the rounds'
ratios. The time is that of a forward pass and capture, exact and Monte-Carlo, on the networks of
`spu_lab.benchmarks.networks`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Literal

KINDS: tuple[Literal["exact", "mc"], ...] = ("exact", "mc")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the median seconds of both checkouts, and their ratio, for each network and curvature."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of the other checkout")
    parser.add_argument("--networks", nargs="+", help="names of networks (default: all)")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each checkout (default: 6)")
    parser.add_argument("--repeats", type=int, default=8, help="timed captures in a turn (default: 8)")
    given = parser.parse_args(arguments)
    from spu_lab.benchmarks.networks import NETWORKS

    print(f"{'network':12} {'curvature':9} {'here, ms':>10} {'other, ms':>10} {'here / other':>12}")
    for network in given.networks or NETWORKS:
        for kind, (here, other, ratio) in _times(network, given.checkout, given.rounds, given.repeats).items():
            print(f"{network:12} {kind:9} {here * 1e3:10.2f} {other * 1e3:10.2f} {ratio:12.2f}", flush=True)


def _times(network: str, checkout: Path, rounds: int, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Return, by curvature, the medians of the rounds' seconds, here and there, and of the ratio within a round."""
    root = Path(__file__).resolve().parents[2]
    times: dict[str, list[tuple[float, float]]] = {}
    with _worker(root, network) as here, _worker(checkout.resolve(), network) as other:
        for _ in range(rounds):
            turns = _turn(here, repeats), _turn(other, repeats)
            for kind in KINDS:
                times.setdefault(kind, []).append((median(turns[0][kind]), median(turns[1][kind])))
    return {
        kind: (median(a for a, _ in pairs), median(b for _, b in pairs), median(a / b for a, b in pairs))
        for kind, pairs in times.items()
    }


@contextmanager
def _worker(checkout: Path, network: str) -> Iterator[subprocess.Popen[str]]:
    """A process that measures a network with the packages of a checkout; it ends with the block."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "protos")])}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--worker", network, str(checkout)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _turn(worker: subprocess.Popen[str], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of one turn by curvature."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(repeats, file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"the process that measures has ended with exit code {worker.wait()}; its error is above")
    times: dict[str, list[float]] = json.loads(line)
    return times


def _serve(network: str, checkout: str) -> None:
    """Measure as often as asked on standard input; runs in a worker, with the packages of its checkout."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print
    import host_client
    from spu_lab.benchmarks.capture import capturing
    from spu_lab.benchmarks.networks import NETWORKS
    from spu_lab.benchmarks.timing import Subjects, turn

    if not Path(host_client.__file__).is_relative_to(checkout):
        raise RuntimeError(f"host_client was imported from {host_client.__file__}, not from {checkout}")
    captures: Subjects = {kind: capturing(NETWORKS[network](), kind) for kind in KINDS}
    for line in sys.stdin:
        print(json.dumps(turn(captures, repeats=int(line))), file=results, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _serve(*sys.argv[2:])
    else:
        main()
