"""The generated parts of docs/reproduction.md: claims and tables from the results in docs/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spu_lab.studies.verdicts import WORDS
from tools.pages import DOCS, table

PAGE = "reproduction.md"

RESULTS = DOCS / "results"
"""Files NAME.json and NAME.md that `tngd reproduce NAME` wrote; the picture NAME.png is in docs/images/."""


def verdicts() -> str:
    """Return all claims with what came out."""
    rows = [
        (f"[{name}](#{name})", verdict["claim"], WORDS[verdict["holds"]], verdict["outcome"])
        for name, result in _results()
        for verdict in result["verdicts"]
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


TABLES = {"verdicts": verdicts, "experiments": experiments}
