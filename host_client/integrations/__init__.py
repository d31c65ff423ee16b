"""Integrations of training frameworks; each module needs its framework installed."""
