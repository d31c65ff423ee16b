"""The page of measured performance, rendered from the result files of benchmarks."""

from host_client.performance.page import write_page

__all__ = ["write_page"]
