"""What a benchmark's docstring says: of the benchmark, and of each ratio."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from types import ModuleType

_ENTRY = re.compile(r"^ {4}(\w+): (.*)$")


@dataclass(frozen=True)
class Description:
    """A benchmark in words.

    Attributes:
        title: the docstring's first line.
        text: its paragraphs up to the ratios.
        ratios: what each ratio is, by name, in the docstring's order; a word in capitals in a name stands for any one.
    """

    title: str
    text: str
    ratios: dict[str, str]

    def meaning(self, ratio: str) -> str:
        """What a ratio is; empty if the docstring does not say."""
        for name, meaning in self.ratios.items():
            if re.fullmatch(re.sub("[A-Z]+", "[^_]+", name), ratio):
                return meaning
        return ""


def describe(module: ModuleType) -> Description:
    """Read a benchmark module's docstring: title, text, and a section ``Ratios:`` with one ``name: meaning`` each."""
    prose, _, section = (inspect.getdoc(module) or "").partition("\nRatios:\n")
    title, _, text = prose.strip().partition("\n")
    ratios: dict[str, str] = {}
    for line in section.splitlines():
        if entry := _ENTRY.match(line):
            name, meaning = entry.groups()
            ratios[name] = meaning
        elif line.startswith(" " * 8) and ratios:
            ratios[name] += " " + line.strip()
        elif line and not line.startswith(" "):
            break
    return Description(title.strip(), text.strip(), ratios)
