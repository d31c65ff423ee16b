"""Kronecker factors of the curvature (KFAC), from curvlinops."""
