"""Training tasks: data, network and loss, by name."""
