"""The curvature page's tables are the code's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from host_client.curvature.rules import RULES, Rule
from host_client.curvature.rules.elementwise import Elementwise

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("curvature_page", ROOT / "tools" / "curvature_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_up_to_date(page: ModuleType) -> None:
    text = page.PAGE.read_text()
    assert page.rendered(text) == text, "run `make pages`"


def test_every_table_is_on_the_page(page: ModuleType) -> None:
    names = [found[1] for found in page.REGION.finditer(page.PAGE.read_text())]
    assert names == ["losses", "functions", "refusals", "warnings"]


def test_a_new_rule_changes_the_page(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "UnheardOfBackward0", Elementwise())
    text = page.PAGE.read_text()
    assert page.rendered(text) != text


def test_a_rule_with_a_form_needs_an_example(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Formed(Rule):
        def operation(self, call: object) -> None:
            """A form."""

    monkeypatch.setitem(RULES, "UnheardOfBackward0", Formed())
    with pytest.raises(LookupError, match=r"UnheardOfBackward0 has a form.* add one to EXAMPLES"):
        page.functions_table()


def test_a_message_without_a_remedy_is_reported(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.py").write_text('def f():\n    raise ValueError(f"no {1}; do this")\n')
    monkeypatch.setattr(page, "SOURCES", tmp_path)
    (message,) = page.messages()
    assert (message.kind, message.reason, message.remedy, message.place) == (
        "ValueError",
        "no …",
        "do this",
        "one.py:2",
    )
    (tmp_path / "one.py").write_text('raise ValueError("no")\n')
    with pytest.raises(ValueError, match=r"one.py:1: the message of ValueError has no remedy"):
        list(page.messages())
