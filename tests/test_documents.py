"""The code in the documents works as they say."""

import os
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spu_lab import cli
from tests.daemon import Daemon
from tests.forked import context

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"""\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)\"""")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENOUGH = 240.0
"""Seconds for a script, on a machine with much else to do."""


SERVED = "unix:/tmp/spu.sock"
"""Address of the daemon that the README starts."""


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and text of each block of code marked as Python."""
    text = page.read_text()
    return [(text[: block.start(2)].count("\n"), block[2]) for block in BLOCK.finditer(text) if block[1] == "python"]


def scripts() -> Iterator[tuple[str, str]]:
    """A name and a script for each block of the README, and for each page: its blocks are one program, in their order.

    Padded with empty lines, so that a traceback has the document's own.
    """
    for line, block in blocks(ROOT / "README.md"):
        yield f"README.md:{line}", "\n" * line + block
    for page in sorted(DOCS.glob("*.md")):
        whole = ""
        for line, block in blocks(page):
            whole += "\n" * (line - whole.count("\n")) + block
        if whole:
            yield page.name, whole


SCRIPTS = dict(scripts())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The daemon of the README, started as it says, on a socket of the tests' own."""
    (options,) = {line.partition(SERVED)[2].partition("#")[0].strip() for line in commands("spu-server serve")[:1]}
    with Daemon(tmp_path_factory.mktemp("d") / "s", *options.split()) as daemon:
        yield daemon.address


def run_script(path: str, folder: str) -> None:
    os.chdir(folder)
    torch.manual_seed(0)  # the same in every run of the tests
    runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("name", SCRIPTS)
def test_code_runs_as_it_stands(name: str, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPTS[name].replace(SERVED, served))
    (folder := tmp_path / "fresh").mkdir()
    process = context.Process(target=run_script, args=(str(script), str(folder)))
    process.start()
    process.join(timeout=ENOUGH)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, f"{name} ended with exit code {process.exitcode}; its traceback is on standard error"
    if name == "tutorial.md":  # its commands are for what its code has left
        monkeypatch.chdir(folder)
        for line in commands("tngd", DOCS / name):
            result = CliRunner().invoke(cli.app, line.split()[1:], env={"COLUMNS": "80"})
            assert result.exit_code == 0, f"{line}\n{result.output}"


def test_code_that_needs_what_it_does_not_define_is_found(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("criterion(model(x), y)\n")
    process = context.Process(target=run_script, args=(str(script), str(tmp_path)))
    process.start()
    process.join(timeout=ENOUGH)
    assert process.exitcode == 1


def commands(program: str, page: Path = ROOT / "README.md") -> list[str]:
    """Lines of a page's blocks for a shell that start this program."""
    shown = "".join(text for language, text in BLOCK.findall(page.read_text()) if not language)
    return [line for line in shown.splitlines() if line.startswith(program)]


@pytest.mark.usefixtures("noise_digits")
def test_commands_run_as_they_stand(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few images and for few steps; what they leave is what the next command needs."""
    monkeypatch.chdir(tmp_path)
    shown = [line for line in commands("tngd") if line.split()[1] in ("train", "timeline")]
    assert len(shown) >= 3
    for line in shown:
        arguments = line.partition("#")[0].replace(SERVED, served).split()[1:]
        if arguments[0] == "train":
            arguments += ["--steps", "3", "--train-size", "64", "--test-size", "64", "--batch-size", "8"]
        result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "80"})
        assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.usefixtures("noise_digits")
def test_a_run_is_replayed_and_played_back_as_the_page_says(
    daemon: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "time-and-replay.md"
    few = ["--steps", "3", "--train-size", "64", "--test-size", "64", "--batch-size", "8"]
    serving, training = commands("spu-server serve", page), commands("tngd train", page)
    for serve, train in zip(serving, training, strict=True):
        device = daemon(*serve.partition(SERVED)[2].partition("#")[0].split())
        arguments = train.replace(SERVED, device.address).split()[1:]
        result = CliRunner().invoke(cli.app, [*arguments, *few], env={"COLUMNS": "80"})
        assert result.exit_code == 0, result.output
        device.close()
        if "--record" in serve:
            (replay,) = commands("tngd replay", page)
            again = CliRunner().invoke(cli.app, replay.split()[1:], env={"COLUMNS": "80"})
            assert "3 readings are the same, bit for bit" in again.output


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    links = ["".join(found) for found in LINK.findall(FENCED.sub("", page.read_text()))]
    lost = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# A title: here\n[a](#a-title-here) [b](gone.md) [c](#gone) <img src="gone.png"> [d](https://a.b)\n'
    )
    assert broken(page) == ["gone.md", "#gone", "gone.png"]


def test_every_decision_is_in_the_list() -> None:
    listed = (DOCS / "decisions" / "README.md").read_text()
    assert [p.name for p in sorted((DOCS / "decisions").glob("0*.md")) if p.name not in listed] == []
