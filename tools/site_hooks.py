"""Hooks of MkDocs (``hooks`` in mkdocs.yml): pages that are not files of docs/, and links to files outside of it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_drawing import svg  # MkDocs puts the folder of its hooks on the path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in ("first_steps", "noise_and_precision")]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a list of pages in the place of each folder in the navigation."""
    decisions = sorted((Path(config.docs_dir) / "decisions").glob("0*.md"))
    folders = {
        "decisions/": ["decisions/README.md", *(f"decisions/{path.name}" for path in decisions)],
        "examples/": [f"examples/{path.stem}.md" for path in EXAMPLES],
        "notebooks/": [f"notebooks/{path.stem}.md" for path in NOTEBOOKS],
    }
    config.nav = _expand(config.nav, folders)
    return config


def _expand(item: Any, folders: dict[str, list[str]]) -> Any:
    if isinstance(item, list):
        return [_expand(entry, folders) for entry in item]
    if isinstance(item, dict):
        return {title: _expand(entry, folders) for title, entry in item.items()}
    return folders.get(item, item)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each program of examples/ and each notebook."""
    for path in EXAMPLES:
        files.append(File.generated(config, f"examples/{path.stem}.md", content=_example(path)))
    for path in NOTEBOOKS:
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=_notebook(path)))
    return files


def _example(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    title = (ast.get_docstring(ast.parse(source)) or path.stem).partition("\n")[0].partition(":")[0].rstrip(".")
    return f"# {title}\n\n`examples/{path.name}` is a complete program to start from.\n\n```python\n{source}```\n"


def _notebook(path: Path) -> str:
    """Return the cells of a notebook as a page, and links from it to other pages."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    parts = [f"```python\n{source}\n```" if kind == "code" else source for kind, source in sources]
    note = f"This page is the notebook `notebooks/{path.name}`, without results."
    title, _, rest = "\n\n".join(parts).partition("\n")
    text = rest.replace("](../docs/", "](../")
    for other in NOTEBOOKS:
        text = text.replace(f"]({other.name})", f"]({other.stem}.md)")
    return f"{title}\n\n{note}\n{text}\n"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links to programs of examples/ and to notebooks lead to their pages, and draw the graphs."""
    for path in NOTEBOOKS:
        markdown = markdown.replace(f"](../notebooks/{path.name})", f"](notebooks/{path.stem}.md)")
    for path in EXAMPLES:
        markdown = markdown.replace(f"](../examples/{path.name})", f"](examples/{path.stem}.md)")
    return re.sub(r"```mermaid\n(.*?)```", lambda graph: f"<div>{svg(graph[1])}</div>", markdown, flags=re.DOTALL)
