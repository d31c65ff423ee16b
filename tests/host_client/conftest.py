"""Fixtures: a device in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from host_client import Session, connect


@pytest.fixture
def session() -> Iterator[Session]:
    """A stepped emulator in this process."""
    with connect("inproc:", clock="stepped", seed=0) as spu, spu.session() as one:
        yield one
