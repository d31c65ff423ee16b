"""Fixtures: one thread, for networks this small."""

from __future__ import annotations

from tests.threads import one_thread as one_thread
