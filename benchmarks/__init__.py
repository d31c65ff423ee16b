"""Benchmarks: each module has ``run()``, which measures in one run and returns ratios and results; `tngd bench NAME`."""
