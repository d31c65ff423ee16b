"""A step goes down through the layers, and back by what is returned, as docs/architecture.md lists it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.system.processes.following import FollowedDaemon
from tests.zygote import Zygote

WAY = (
    (Path(__file__).parents[3] / "docs" / "architecture.md")
    .read_text(encoding="utf-8")
    .partition("## The way of a step")[2]
    .partition("\n## ")[0]
)

FOLLOW = "from tests.system.processes.following import follow\nfollow({address!r})"

OBSERVED = [["host_client.loop", "host_client.blocking"]]
"""The feed reports what happens to the record of a run, by a function of the facade."""


def listed() -> dict[str, list[str]]:
    """The files that the page lists, by process."""
    files: dict[str, list[str]] = {}
    process = ""
    for name, cells in re.findall(r"^\| (\w*) ?\|[^|]+\| (`.*`) \|$", WAY, re.MULTILINE):
        process = name or process
        files.setdefault(process, []).extend(re.findall("`([^`]+)`", cells))
    return files


def assert_called(files: list[str], modules: list[str]) -> None:
    """Each file is one of the modules, and they come in this order."""
    ends = ["." + name.replace("/", ".") for name in files]
    found = {end: [module for module in modules if f".{module}".endswith(end)] for end in ends}
    assert all(len(those) == 1 for those in found.values()), (found, modules)
    expected = [module for those in found.values() for module in those]
    assert expected == [module for module in modules if module in expected]


def test_a_step_calls_the_files_that_the_page_lists_in_order_and_none_calls_upwards(
    zygote: Zygote, tmp_path: Path
) -> None:
    with FollowedDaemon(tmp_path) as daemon:
        ended = zygote.run(FOLLOW.format(address=daemon.address))
    assert ended.code == 0, ended.err
    client = json.loads(ended.out)
    files = listed()
    assert_called(files["client"], client["modules"])
    for process in ("daemon", "driver"):
        assert_called(files[process], daemon.modules(process))
    assert client["upwards"] in ([], OBSERVED)
    assert f"{len({name for names in files.values() for name in names})} files" in WAY


def test_in_one_process_a_step_calls_the_same_files_but_for_what_lies_between(zygote: Zygote) -> None:
    ended = zygote.run(FOLLOW.format(address="inproc:"))
    assert ended.code == 0, ended.err
    called = json.loads(ended.out)
    named = {name for names in listed().values() for name in names}
    between = {"links/remote_calls", "services/spu", "services/incoming", "drivers/process"}
    assert between < named
    here = named - between | {"links/inproc", "drivers/port"}
    modules = {f"/{module.replace('.', '/')}" for module in called["modules"]}
    assert all(any(module.endswith(f"/{name}") for module in modules) for name in here), called["modules"]
    assert not any(module.endswith(f"/{name}") for module in modules for name in between)
    assert called["upwards"] in ([], OBSERVED)
    assert f"one process and {len(here)} files" in WAY
