"""The laboratory: tasks, training runs, experiments, pictures and benchmarks, and the command ``tngd``."""
