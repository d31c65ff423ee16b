"""What to train: data, network and loss, by name."""
