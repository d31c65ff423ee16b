"""Benchmarks for `tngd bench NAME`: each module has ``run()``, which returns ratios and results of one run."""
