"""Complete programs to start from; each says how it is run."""
