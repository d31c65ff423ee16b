"""Result files of benchmarks as one page of Markdown: every figure with its target, machine, versions and command."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ValidationError

from spu_lab import catalogue
from spu_lab.benchmarks.targets import Target
from spu_lab.performance.plots import plot

PACKAGE: Final = "spu_lab.benchmarks"

INTRODUCTION = """\
# Performance

For those who want to know what a step costs, and where. With this page you can compare capture, upload, solution and
whole steps with their alternatives, and see which targets are missed.

Every figure here is a ratio of two things measured in the same run on the same machine, medians of several rounds in
which all sides take turns, each in a separate process. `make performance` runs the benchmarks and renders this page;
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
    """The part of a file of `tngd bench NAME --json FILE` that a page needs."""

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
    """Render the page and its plots, which go to ``images/performance-NAME.png`` next to it.

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
        parts.append(_section(content, f"images/{image.name}" if drawn else None))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [
        ratio
        for content in contents
        for ratio, value in _ratios_with_targets(content)
        if not _targets()[ratio].met(value)
    ]


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
    return sorted(contents, key=lambda content: (-len(_ratios_with_targets(content)), content["name"]))


def number(value: float) -> str:
    """Three digits, without an exponent where that reads well."""
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.3g}" if not 0 <= digits <= 4 else f"{value:.{digits}f}"


def _ratios_with_targets(content: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the ratios with a target."""
    return [(ratio, value) for ratio, value in content["ratios"].items() if ratio in _targets()]


def _targets() -> dict[str, Target]:
    return _declared("TARGETS")


@cache
def _declared(constant: str) -> dict[str, Any]:
    """Return the entries of a constant of all benchmarks, ``RATIOS`` or ``TARGETS``, by ratio."""
    benchmarks = [catalogue.find(PACKAGE, name) for name in catalogue.names(PACKAGE)]
    return {ratio: value for benchmark in benchmarks for ratio, value in getattr(benchmark, constant, {}).items()}


def _summary(contents: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for content in contents:
        for ratio, value in _ratios_with_targets(content):
            anchor = f"[{content['name']}](#{content['name']})"
            rows.append([f"`{ratio}`", number(value), str(_targets()[ratio]), _verdict(ratio, value), anchor])
    met = sum(_targets()[ratio].met(value) for content in contents for ratio, value in _ratios_with_targets(content))
    measured = {ratio for content in contents for ratio in content["ratios"]}
    lines = ["## Targets", f"{met} of {len(rows)} measured targets are met."]
    if missing := [f"`{ratio}`" for ratio in _targets() if ratio not in measured]:
        lines.append(f"Not measured in these files: {', '.join(missing)}.")
    lines.append(_table(["figure", "value", "target", "", "benchmark"], rows))
    return "\n\n".join(lines)


def _section(content: Mapping[str, Any], image: str | None) -> str:
    name = content["name"]
    documentation = inspect.getdoc(catalogue.find(PACKAGE, name)) if name in catalogue.names(PACKAGE) else None
    title, _, text = (documentation or "").partition("\n")
    parts = [f"## {name}", title, text.strip()]
    if image is not None:
        parts.append(f"![{title or name}]({image})")
    rows = []
    for ratio, value in content["ratios"].items():
        target = str(_targets().get(ratio, ""))
        meaning = _declared("RATIOS").get(ratio, "").replace("|", "\\|")
        rows.append([f"`{ratio}`", number(value), target, _verdict(ratio, value), meaning])
    parts.append(_table(["figure", "value", "target", "", "what over what"], rows))
    parts.append(_provenance(content))
    return "\n\n".join(part for part in parts if part)


def _verdict(ratio: str, value: float) -> str:
    """Return whether a target is met; a miss also says by how much."""
    target = _targets().get(ratio)
    if target is None:
        return ""
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
