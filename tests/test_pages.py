"""The generated parts of the documentation are those of the code."""

import re
from importlib import import_module
from xml.etree import ElementTree

import pytest

from tools import architecture_page, pages, site_drawing


@pytest.mark.parametrize("name", pages.MODULES)
def test_a_page_is_up_to_date_and_has_every_table(name: str) -> None:
    page = import_module(name)
    text = (pages.DOCS / page.PAGE).read_text()
    assert pages.rendered(page) == text, "run `make pages`"
    assert {found[1] for found in pages.REGION.finditer(text)} == set(page.TABLES)


def test_the_drawing_shows_the_direct_imports_alone() -> None:
    drawing = architecture_page.drawing()
    assert "optimizers --> loop" in drawing
    assert "optimizers --> aio" not in drawing  # by way of the loop
    assert "host_client --> spu_server" not in drawing
    assert "links --> spu_server" not in drawing


def test_the_site_draws_every_package_and_import_by_itself() -> None:
    graph = architecture_page.drawing()
    picture = ElementTree.fromstring(site_drawing.svg(graph))
    boxes = {text.text for text in picture.iter("text")}
    assert boxes == {"host_client", *re.findall(r"\w+(?=\[| -->)|(?<=--> )\w+", graph)}
    assert sum("marker-end" in path.attrib for path in picture.iter("path")) == graph.count("-->")
