"""The generated parts of docs/reproduction.md: claims and tables from the results in docs/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spu_lab.studies.paper_claims import PAPER_CLAIMS
from spu_lab.studies.verdicts import WORDS
from tools.pages import DOCS, table

PAGE = "reproduction.md"

RESULTS = DOCS / "results"
"""Files NAME.json and NAME.md that `tngd reproduce NAME` wrote; the picture NAME.png is in docs/images/."""


def paper() -> str:
    """Return the claims of the paper, each with the verdicts on its parts."""
    parts = [(name, verdict) for name, result in _results() for verdict in result["verdicts"]]
    rows = []
    for source, claim in PAPER_CLAIMS.items():
        mine = [(name, verdict) for name, verdict in parts if verdict.get("paper") == source]
        outcomes = "<br>".join(f"{v['claim']}: {WORDS[v['holds']]}. {v['outcome']}" for _, v in mine)
        links = ", ".join(f"[{name}](#{name})" for name in dict.fromkeys(name for name, _ in mine))
        rows.append((source, claim, _together([v["holds"] for _, v in mine]), f"{outcomes} ({links})" if mine else ""))
    return table(("where", "claim", "verdict", "what came out"), rows)


def _together(holds: list[bool | None]) -> str:
    """Return the verdict on a claim of several parts."""
    if not holds:
        return "not tried yet"
    counts = {word: holds.count(value) for value, word in WORDS.items() if value in holds}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{word}: {count} of {len(holds)}" for word, count in counts.items())


def verdicts() -> str:
    """Return the claims of this project with what came out."""
    rows = [
        (f"[{name}](#{name})", verdict["claim"], WORDS[verdict["holds"]], verdict["outcome"])
        for name, result in _results()
        for verdict in result["verdicts"]
        if not verdict.get("paper")
    ]
    return table(("experiment", "claim", "verdict", "what came out"), rows)


def experiments() -> str:
    """Return a section for each experiment: how it was run, its table and its picture."""
    return "".join(_section(name, result) for name, result in _results())


def _results() -> list[tuple[str, dict[str, Any]]]:
    return [(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(RESULTS.glob("*.json"))]


def _section(name: str, result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    title, _, rest = (RESULTS / f"{name}.md").read_text(encoding="utf-8").partition("\n\n")
    rows = "".join(line + "\n" for line in rest.splitlines() if line.startswith("|"))
    picture = f"\n![{title}](images/{name}.png)\n" if Path(DOCS, "images", f"{name}.png").exists() else ""
    return (
        f"\n### {name}\n\n`tngd reproduce {name}` of {result['date'][:10]}, commit {result['commit']}, torch "
        f"{versions['torch']}, numpy {versions['numpy']}, {machine['cores']} cores ({machine['processor']}), load "
        f"{machine['load_average']:.0f}. [All settings and numbers](results/{name}.json).\n\n"
        f"{title}:\n\n{rows}{picture}"
    )


TABLES = {"paper": paper, "verdicts": verdicts, "experiments": experiments}
