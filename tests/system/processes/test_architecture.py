"""A step goes down through the layers, and back by what is returned, as docs/architecture.md lists it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.zygote import Zygote

LISTED = [
    name.replace("/", ".")
    for cells in re.findall(
        r"^\| [^|]+ \| (`.*`) \|$",
        (Path(__file__).parents[3] / "docs" / "architecture.md")
        .read_text(encoding="utf-8")
        .partition("## The way of a step")[2]
        .partition("\n## ")[0],
        re.MULTILINE,
    )
    for name in re.findall("`([^`]+)`", cells)
]


def test_a_step_calls_the_files_that_the_page_lists_in_order_and_none_calls_upwards(zygote: Zygote) -> None:
    ended = zygote.run("from tests.system.processes.following import follow\nfollow()")
    assert ended.code == 0, ended.err
    called = json.loads(ended.out)
    modules = {name: [module for module in called["modules"] if f".{module}".endswith(f".{name}")] for name in LISTED}
    assert len(LISTED) > 20
    assert all(len(found) == 1 for found in modules.values()), modules
    listed = [module for found in modules.values() for module in found]
    assert listed == [module for module in called["modules"] if module in listed]
    # The feed reports what happens to the record of a run, by a function of the facade.
    assert called["upwards"] in ([], [["host_client.loop", "host_client.blocking"]])
