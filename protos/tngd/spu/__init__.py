"""Interfaces of the stochastic processing unit."""
