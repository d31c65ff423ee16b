"""Fixtures: programs in interpreters of their own."""

from __future__ import annotations

from tests.zygote import zygote as zygote
