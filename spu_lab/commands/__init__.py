"""The commands of ``tngd``, one a module.

A module imports what its command works with when the command runs, so that ``tngd --help`` is there at once.
"""
