"""The page of errors is that of the code, complete, and its examples are messages that were raised."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import host_client
import spu_link
import spu_server
from spu_lab.timeline import NoSuchWindow
from tools import errors_page as page
from tools import pages

TEXT = (pages.DOCS / page.PAGE).read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE))


def test_every_class_that_a_user_may_see_is_on_it_once() -> None:
    public = set(page.classes())
    for package in (host_client, spu_link, spu_server):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            for name, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                ours = cls.__module__.partition(".")[0] in page.PACKAGES and issubclass(cls, Exception)
                assert not ours or cls.__name__ in public | set(page.INTERNAL), name
    assert sorted(ROWS) == sorted(public)
    assert len(re.findall(r"^\| `\w+` \|", TEXT, re.MULTILINE)) == len(public)


def test_each_says_when_it_is_raised_and_what_to_do_and_most_have_an_example() -> None:
    for name, row in ROWS.items():
        cause, remedy, example = row.split(" | ")
        assert len(cause.split()) > 3, name
        assert len(remedy.split()) > 2, name
        assert (example == "–") == (name in page.WITHOUT_EXAMPLE), name


def test_a_class_without_a_remedy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(NoSuchWindow, "remedy")
    with pytest.raises(LookupError, match=r"spu_lab\.timeline\.window\.NoSuchWindow has no `remedy`"):
        page.classes()


def test_an_example_that_raises_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(page.EXAMPLES, "NoSuchWindow", lambda: None)
    with pytest.raises(AssertionError, match="the example of NoSuchWindow does not raise it"):
        page.provoked(NoSuchWindow)


def test_no_message_shows_what_is_of_a_library() -> None:
    assert not re.search(r"StatusCode|FAILED_PRECONDITION|UNAVAILABLE|linalg\.|grpc\.|Traceback", TEXT)
