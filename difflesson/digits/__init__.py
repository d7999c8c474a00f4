"""Handwritten digits: data, networks, training, checkpoints and metrics."""
