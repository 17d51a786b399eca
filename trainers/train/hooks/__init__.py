"""What the training loop calls between updates: logs, evaluation, checkpoints, stops, callbacks."""
