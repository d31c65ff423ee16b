"""The documentation site shows the classes as they are at run time."""

from __future__ import annotations

from inspect import cleandoc

import griffe
import pytest

import host_client
from tools import api_page
from tools.pages import DOCS

ROOT = DOCS.parent


@pytest.fixture(scope="module")
def package() -> griffe.Module:
    extensions = griffe.load_extensions(ROOT / "tools" / "site_facade.py")
    loaded = griffe.load("host_client", search_paths=[ROOT], extensions=extensions)
    assert isinstance(loaded, griffe.Module)
    return loaded


@pytest.mark.parametrize("name", ["Feed", "Session", "Spu", "Upload"])
def test_a_blocking_class_has_the_methods_and_properties_that_it_has_at_run_time(
    package: griffe.Module, name: str
) -> None:
    shown = package["blocking.api"][name].members
    for member, value in vars(getattr(host_client, name)).items():
        if not member.startswith("_"):
            assert shown[member].is_function == callable(value), member
            assert shown[member].docstring.value == cleandoc(value.__doc__), member
            assert "await" not in shown[member].docstring.value


def test_a_name_of_an_unknown_module_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_client, "loads", __import__("json").loads, raising=False)
    with pytest.raises(LookupError, match="loads is of json, which no group"):
        api_page.group_of("loads")
