"""Statistical assertions, which are the conformance suite's."""

from spu_server.testing.statistics import FALSE_ALARM, assert_standard_normal, whiten

__all__ = ["FALSE_ALARM", "assert_standard_normal", "whiten"]
