"""Counts of how trials ended, with the smallest example of each fault."""

from __future__ import annotations

from collections import Counter

from tests.host_client.curvature.exploration.trials import Outcome, Trial


class Tally:
    """Outcomes of trials.

    Attributes:
        counts: by kind, with the error where one was refused or crashed.
        operations: how often each was in a trial.
        smallest: of each fault, or refusal, the trial with the shortest description.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.smallest: dict[str, tuple[Trial, Outcome]] = {}

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Count a trial."""
        kind = f"{outcome.kind}: {outcome.reason}" if outcome.reason else outcome.kind
        self.counts[kind] += 1
        self.operations.update(trial.program.operations())
        if outcome.kind != "right" and (
            kind not in self.smallest or len(repr(trial)) < len(repr(self.smallest[kind][0]))
        ):
            self.smallest[kind] = trial, outcome

    def total(self) -> int:
        """Return the number of trials whose reference was finite."""
        return self.counts.total() - self.counts["undefined"]

    def refused(self) -> int:
        """Return the number of trials that were refused with a documented error."""
        return sum(count for kind, count in self.counts.items() if kind.startswith("refused"))
