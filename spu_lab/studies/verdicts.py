"""Claims with what came out: in a table's file, on the console, and in results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from spu_lab.result_folder import write_whole
from spu_lab.studies.paper_claims import PAPER_CLAIMS


@dataclass(frozen=True)
class Verdict:
    """A claim and what came out.

    Attributes:
        claim: in a sentence.
        outcome: with numbers, in a sentence.
        holds: whether the claim is right; None where the runs do not decide it.
        paper: which of `PAPER_CLAIMS` it is part of; empty for a claim of this project.
    """

    claim: str
    outcome: str
    holds: bool | None
    paper: str = ""

    @property
    def sentence(self) -> str:
        """The whole in words."""
        return f"{self.claim}: {WORDS[self.holds]}. {self.outcome}"

    def of_paper(self, claim: str) -> Verdict:
        """Return the same as part of one of `PAPER_CLAIMS`."""
        if claim not in PAPER_CLAIMS:
            raise KeyError(f"{claim!r} is none of {', '.join(PAPER_CLAIMS)}")
        return replace(self, paper=claim)


WORDS = {True: "holds", False: "does not hold", None: "not decided"}
"""Verdicts in words."""


def write_table(
    path: Path,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    verdicts: Sequence[Verdict],
    console: Console,
    *,
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """Show a table with verdicts and further notes below, and write all as Markdown.

    The first column is left-aligned and wraps, the others are right-aligned.

    Raises:
        OSError: when the file cannot be written.
    """
    sentences = [*(verdict.sentence for verdict in verdicts), *notes]
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for sentence in sentences:
        console.print(sentence, highlight=False)
    rule = [":--", *["--:"] * (len(columns) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)]
    items = [f"- {sentence}" for sentence in sentences]
    write_whole(path, "\n".join([title, "", *lines, "", *items, ""]).encode())


def to_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return verdicts ready for JSON, with the sentence of each."""
    return [{"sentence": verdict.sentence, **asdict(verdict)} for verdict in verdicts]
