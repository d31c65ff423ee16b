"""Random models in random training loops, whose captured curvature is compared with a dense reference.

A trial prints as the call that makes it: paste it from the report of a failure, and look at `trial.outcome()`.
``python -m tests.host_client.curvature.exploration`` surveys many of them without stopping at the first fault.
"""
