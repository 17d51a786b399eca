"""Hooks of the training loop: logs, evaluation, checkpoints, stops, callbacks."""
