"""The page of measured performance, rendered from the result files of benchmarks."""

from spu_lab.performance.page import write_page

__all__ = ["write_page"]
