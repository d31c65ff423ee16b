"""Training runs: settings, the loop, and what a run leaves in its folder."""
