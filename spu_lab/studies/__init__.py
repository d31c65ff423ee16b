"""Runs of one property at several values, over seeds: sweeps, paired tests, tables and pictures."""
