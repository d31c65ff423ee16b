"""Result files of benchmarks as one page of Markdown: every figure with its target, machine, versions and command."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

import benchmarks
from benchmarks.targets import TARGETS
from host_client import modules
from host_client.performance.descriptions import Description, describe
from host_client.performance.plots import plot

INTRODUCTION = """\
# Performance

Every figure here is a ratio of two things measured in the same run on the same machine, medians of several rounds in
which all sides take turns, each in a process of its own. `make performance` runs the benchmarks and renders this page;
nothing in it is written by hand. A figure that misses its target says so."""


class NoResults(Exception):
    """A folder holds no result file of a benchmark."""

    remedy: ClassVar[str] = (
        "make the results with `tngd bench NAME --json FOLDER/NAME.json`, and move other JSON files away"
    )


class _Machine(BaseModel):
    """The machine of a result."""

    system: str
    processor: str
    cores: int | None
    torch_threads: int
    load_average: float | None = None


class _Result(BaseModel):
    """What a page needs of a file of `tngd bench NAME --json FILE`."""

    name: str
    ratios: dict[str, float]
    results: dict[str, Any]
    machine: _Machine
    versions: dict[str, str]
    command: str
    commit: str | None
    date: str
    seconds: float = 0.0


def write_page(results: Path, out: Path) -> list[str]:
    """Render the page and its plots, which go to ``images/performance-NAME.png`` beside it.

    Args:
        results: folder with the files that ``tngd bench NAME --json FILE`` has written; other JSON files are an error.
        out: the page; its folder is made.

    Returns:
        The ratios that miss their target.

    Raises:
        NoResults: when there is none, or when a file is not one.
        OSError: when a file cannot be read or written.
    """
    contents = read_results(results)
    known = {name: modules.find(benchmarks, name) for name in modules.names(benchmarks)}
    parts = [INTRODUCTION, _summary(contents)]
    for content in contents:
        name = content["name"]
        image = out.parent / "images" / f"performance-{name}.png"
        try:
            drawn = plot(content, image)
        except KeyError as missing:
            again = f"`tngd bench {name} --json {results}/{name}.json`"
            raise NoResults(f"the results of {name} are of another version, without {missing}; {again}") from None
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            again = f"`tngd bench {name} --json {results}/{name}.json`"
            raise NoResults(f"the results of {name} cannot be drawn ({error}); measure them again: {again}") from None
        description = describe(known[name]) if name in known else Description("", "", {})
        parts.append(_section(content, description, f"images/{image.name}" if drawn else None))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [ratio for content in contents for ratio, value in _judged(content) if not TARGETS[ratio].met(value)]


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Contents of all result files in a folder, by name; those with targets first.

    Raises:
        NoResults: when there is none, or when a file is not one.
    """
    contents = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            _Result.model_validate(content)
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"])) or "content"
            raise NoResults(
                f"{path} is not a result of `tngd bench NAME --json FILE`; move it elsewhere ({field}: "
                f"{error.errors()[0]['msg'].lower()})"
            ) from None
        except (ValueError, RecursionError) as error:
            raise NoResults(f"{path} is not JSON: {error}") from None
        contents.append(content)
    if not contents:
        raise NoResults(f"{folder} holds no results; make one with `tngd bench NAME --json {folder}/NAME.json`")
    return sorted(contents, key=lambda content: (-len(_judged(content)), content["name"]))


def number(value: float) -> str:
    """Three digits, without an exponent where that reads well."""
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.3g}" if not 0 <= digits <= 4 else f"{value:.{digits}f}"


def _judged(content: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Ratios with a target."""
    return [(ratio, value) for ratio, value in content["ratios"].items() if ratio in TARGETS]


def _summary(contents: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for content in contents:
        for ratio, value in _judged(content):
            anchor = f"[{content['name']}](#{content['name']})"
            rows.append([f"`{ratio}`", number(value), str(TARGETS[ratio]), _verdict(ratio, value), anchor])
    met = sum(TARGETS[ratio].met(value) for content in contents for ratio, value in _judged(content))
    measured = {ratio for content in contents for ratio in content["ratios"]}
    lines = ["## Targets", f"{met} of {len(rows)} measured targets are met."]
    if missing := [f"`{ratio}`" for ratio in TARGETS if ratio not in measured]:
        lines.append(f"Not measured in these files: {', '.join(missing)}.")
    lines.append(_table(["figure", "value", "target", "", "benchmark"], rows))
    return "\n\n".join(lines)


def _section(content: Mapping[str, Any], description: Description, image: str | None) -> str:
    name = content["name"]
    parts = [f"## {name}", description.title, description.text]
    if image is not None:
        parts.append(f"![{description.title or name}]({image})")
    rows = []
    for ratio, value in content["ratios"].items():
        target = str(TARGETS[ratio]) if ratio in TARGETS else ""
        meaning = description.meaning(ratio).replace("|", "\\|")
        rows.append([f"`{ratio}`", number(value), target, _verdict(ratio, value), meaning])
    parts.append(_table(["figure", "value", "target", "", "what over what"], rows))
    parts.append(_provenance(content))
    return "\n\n".join(part for part in parts if part)


def _verdict(ratio: str, value: float) -> str:
    """Whether a target is met; a miss also says by how much."""
    if ratio not in TARGETS:
        return ""
    target = TARGETS[ratio]
    if target.met(value):
        return "met"
    by = target.bound / value if target.side == "at least" else value / target.bound
    return f"**missed by {number(by)} ×**"


def _provenance(content: Mapping[str, Any]) -> str:
    machine = content["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    load = machine.get("load_average")
    lines = [
        f"- command: `{content['command']}`" + (f", {content['seconds']:.0f} s" if "seconds" in content else ""),
        f"- machine: {machine['processor']}, {machine['cores']} cores, {machine['torch_threads']} torch threads, "
        + machine["system"]
        + (f"; {load:.2f} processes ran or waited in the minute before the run's end" if load is not None else ""),
        f"- versions: {versions}; commit {content['commit'] or 'unknown'}, {content['date']}",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", "---:", "---:", *["---"] * (len(head) - 3)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
