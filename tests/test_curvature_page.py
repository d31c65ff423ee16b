"""The curvature page's tables are the code's."""

from __future__ import annotations

from pathlib import Path

import pytest

from host_client.curvature.rules import RULES, Rule
from host_client.curvature.rules.elementwise import Elementwise
from tools import curvature_page as page
from tools import pages


def test_a_new_rule_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "UnheardOfBackward0", Elementwise())
    assert pages.rendered(page) != (pages.DOCS / page.PAGE).read_text()


def test_a_rule_with_a_form_needs_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    class Formed(Rule):
        def operation(self, call: object) -> None:
            """A form."""

    monkeypatch.setitem(RULES, "UnheardOfBackward0", Formed())
    with pytest.raises(LookupError, match=r"UnheardOfBackward0 has a form.* add one to EXAMPLES"):
        page.functions_table()


def test_a_message_without_a_remedy_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
