"""Survey random trials: count how they end, and show the smallest example of each way that is not right."""

from __future__ import annotations

import argparse
import zlib

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.host_client.curvature.exploration.operations import OPERATIONS
from tests.host_client.curvature.exploration.tally import Tally
from tests.host_client.curvature.exploration.trials import Trial, trials


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operations", nargs="*", help="operations to try; all if none is named")
    parser.add_argument("--examples", type=int, default=10, help="trials of each operation (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="which examples (default: 0)")
    parser.add_argument("--longest", type=int, default=3, help="further operations of a model at most (default: 3)")
    parser.add_argument("--plain", action="store_true", help="one backward pass a step and nothing more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tally = Tally()
    for focus in options.operations or OPERATIONS:

        @seed(options.seed + zlib.crc32(focus.encode()))
        @settings(
            max_examples=options.examples,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(trials(focus=focus, longest=options.longest, plain=options.plain))
        def survey(trial: Trial) -> None:
            tally.add(trial, trial.outcome())

        survey()
    for kind, count in tally.counts.most_common():
        print(f"{count:6}  {kind}")
    for kind, (trial, outcome) in tally.smallest.items():
        print(f"\n{kind}: {outcome.detail}\n{trial!r}")


if __name__ == "__main__":
    main()
