"""Render the generated parts of the documentation from the code: ``python -m tools.pages``; ``make pages`` calls it.

A page of docs/ with such parts has a module ``*_page.py`` here, with its name as ``PAGE`` and functions that give its
parts as ``TABLES``. A part lies between the lines ``<!-- generated: NAME -->`` and ``<!-- end -->``.

With ``--check`` the pages are only compared: the exit status is 1 if one is not up to date.
"""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).resolve().parent.parent / "docs"
MODULES = tuple(f"tools.{path.stem}" for path in sorted(Path(__file__).parent.glob("*_page.py")))
REGION = re.compile(r"(?<=^<!-- generated: )(\w+)( -->\n).*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Write the pages, or compare them."""
    for page in map(import_module, MODULES):
        path: Path = DOCS / page.PAGE
        text = rendered(page)
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif text != path.read_text(encoding="utf-8"):
            sys.exit(f"{path} is not up to date: run `make pages`")


def rendered(page: ModuleType) -> str:
    """Return a page with the tables that the code has now."""
    text = (DOCS / page.PAGE).read_text(encoding="utf-8")
    return REGION.sub(lambda found: f"{found[1]}{found[2]}{page.TABLES[found[1]]()}", text)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def paragraph(docstring: str | None) -> str:
    """Return the first paragraph of a docstring on one line."""
    return inspect.cleandoc(docstring or "").partition("\n\n")[0].replace("\n", " ")


def sentence(docstring: str | None) -> str:
    """Return the first sentence of a docstring, without its full stop."""
    return paragraph(docstring).partition(". ")[0].removesuffix(".")


def escaped(text: str) -> str:
    """Return text as Markdown in which only pieces of code, between backticks, are marked."""
    return re.sub(r"(`[^`]*`)|([<>*_])", lambda found: found[1] or f"\\{found[2]}", text)


if __name__ == "__main__":
    main()
